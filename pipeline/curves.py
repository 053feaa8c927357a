"""A net's training curve as a result: curves/<profile>/<net>.json, which figures, the report and `dvc plots` read.

Loss, learning rate and scores on the way, without what depends on the machine: the same run gives the same file.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ResultError
from pipeline.spool import Point

REMEDY = "run `dvc repro train`"
KEPT = ("loss", "lr", "val_mean_iu", "val_pixel_acc")


@dataclass(frozen=True)
class Curve:
    """parent: the net it started from, or "backbone".   points: by step, each {"step": 10, "loss": 1.2, "lr": ...}."""

    net: str
    parent: str
    points: tuple[dict[str, float], ...]

    def of(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of the points that have this value; both empty if none has."""
        points = [point for point in self.points if name in point]
        return [point["step"] for point in points], [point[name] for point in points]


def write(path: Path, net: str, parent: str, measured: Iterable[Point]) -> None:
    """Writes the file whole or not at all. What a point lacks is null: `dvc plots` wants all alike."""
    measured = list(measured)
    names = [name for name in KEPT if any(name in point.values for point in measured)]
    points = [{"step": point.step} | {name: point.values.get(name) for name in names} for point in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    values = {"net": net, "parent": parent, "points": points}
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> Curve:
    """What `write` wrote; ResultError if the file is missing, damaged or another program's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(
            {str(name): float(value) for name, value in point.items() if value is not None}
            for point in values["points"]
        )
        if any("step" not in point for point in points):
            raise ValueError("a point without a step")
        return Curve(str(values["net"]), str(values["parent"]), points)
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} holds no curve that can be read ({error}); {REMEDY}") from error
