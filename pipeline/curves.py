"""Training curves: JSON lines while a net trains, and one JSON file as its result.

Training appends points to a file, so a tracking server that is slow or down costs training nothing. The result,
curves/<profile>/<net>.json, leaves out what depends on the machine: the same run gives the same file.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline import files
from pipeline.errors import ResultError

REMEDY = "run `dvc repro train`"
RESULT_NAMES = ("loss", "lr")  # and the scores on validation images
VALIDATION = "val_"  # begins the name of such a score


class Point(NamedTuple):
    """One point of a curve.

    step: of the run, from 1.
    time_ms: milliseconds since the epoch.
    values: by metric name.
    """

    step: int
    time_ms: int
    values: dict[str, float]


def append_point(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Append a point as one JSON line, with one write, so that a reader never sees two half lines mixed."""
    line = json.dumps([step, time.time_ns() // 1_000_000, dict(values)]) + "\n"
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(file):  # a kill cut the last one short
            line = "\n" + line
        file.write(line.encode())


def read_points(path: Path, after_step: int = -1) -> list[Point]:
    """Return the points of later steps in order, each step once; a resumed run repeats steps after its checkpoint."""
    points: dict[int, Point] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else still being written
                try:
                    point = Point(*json.loads(line))
                except json.JSONDecodeError:  # cut short by a kill; the resumed run measured it again
                    continue
                if point.step > after_step:
                    points.setdefault(point.step, point)
    return sorted(points.values())


def remove_points(path: Path, after_step: int) -> None:
    """Remove the points of later steps from a file that `append_point` wrote."""
    points = [point for point in read_points(path) if point.step <= after_step]
    files.write_text(path, "".join(json.dumps(point) + "\n" for point in points))


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


@dataclass(frozen=True)
class Curve:
    """A net's training curve.

    net: its name.
    parent: the net it started from, or "backbone".
    points: by step, each {"step": 10, "loss": 1.2, "lr": ...}.
    kept: which net of the run was kept, from the model file's lineage; {} in files of earlier versions.
    """

    net: str
    parent: str
    points: tuple[dict[str, float], ...]
    kept: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of the points that have this value; both are empty if none has."""
        points = [point for point in self.points if name in point]
        return [point["step"] for point in points], [point[name] for point in points]


def write_curve(
    path: Path, net: str, parent: str, measured: Iterable[Point], kept: Mapping[str, Any] = {}
) -> None:
    """Write the result file. A missing value becomes null, because `dvc plots` wants the same keys in all points."""
    measured = list(measured)
    known = dict.fromkeys(name for point in measured for name in point.values)
    names = [name for name in RESULT_NAMES if name in known]
    names += [name for name in known if name.startswith(VALIDATION)]
    points = [{"step": point.step} | {name: point.values.get(name) for name in names} for point in measured]
    files.write_json(path, {"net": net, "parent": parent, "kept": kept, "points": points})


def read_curve(path: Path) -> Curve:
    """Read what `write_curve` wrote. Raises ResultError if the file is missing, damaged or of another program."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(
            {str(name): float(value) for name, value in point.items() if value is not None}
            for point in values["points"]
        )
        if any("step" not in point for point in points):
            raise ValueError("a point without a step")
        return Curve(str(values["net"]), str(values["parent"]), points, dict(values.get("kept", {})))
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is not a readable training curve ({error}); {REMEDY}") from error


def kept_in_words(kept: Mapping[str, Any]) -> str:
    """Return which net of its run was kept, and why.

    kept: from a model file's lineage, as training/choice.py writes it.
    """
    words = f"step {kept['step']} of {kept['last_step']}, the {kept['keep']}"
    if "best_by" in kept:
        score = "-" if kept["score"] is None else f"{kept['score']:.4f}"
        words += f" ({kept['best_by']} {score} on {kept['num_images']} images of {kept['split']})"
    if kept["last_step"] < kept["iterations"]:
        words += f"; ended before step {kept['iterations']}, as validations brought no gain"
    return words + (f"; weights averaged, decay {kept['ema']}" if "ema" in kept else "")
