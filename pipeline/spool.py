"""Training curves on disk: what a worker measured, one JSON line a point, until tracking has replayed it.

A tracking server that is slow, down or restarted costs training nothing this way.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """step: of the run.   time_ms: since the epoch.   values: by metric name."""

    step: int
    time_ms: int
    values: dict[str, float]


def append(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Adds a point; one write, so that a reader never sees two half lines mixed."""
    line = json.dumps([step, time.time_ns() // 1_000_000, dict(values)]) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def read(path: Path, after_step: int) -> list[Point]:
    """The points of later steps, each step once: a resumed run measures again what it had not saved."""
    points: dict[int, Point] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else still being written, or cut short by a kill
                point = Point(*json.loads(line))
                if point.step > after_step:
                    points.setdefault(point.step, point)
    return sorted(points.values())
