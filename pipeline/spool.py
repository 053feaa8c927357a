"""Training curves on disk: what a worker measured, one JSON line a point, until tracking has replayed it.

A tracking server that is slow, down or restarted costs training nothing this way.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple


class Point(NamedTuple):
    """step: of the run.   time_ms: since the epoch.   values: by metric name."""

    step: int
    time_ms: int
    values: dict[str, float]


def append(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Adds a point; one write, so that a reader never sees two half lines mixed."""
    line = json.dumps([step, time.time_ns() // 1_000_000, dict(values)]) + "\n"
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(file):  # a kill cut the last one short
            line = "\n" + line
        file.write(line.encode())


def read(path: Path, after_step: int) -> list[Point]:
    """The points of later steps, each step once: a resumed run measures again what it had not saved."""
    points: dict[int, Point] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else still being written
                try:
                    point = Point(*json.loads(line))
                except json.JSONDecodeError:  # cut short by a kill: the run that went on measured it again
                    continue
                if point.step > after_step:
                    points.setdefault(point.step, point)
    return sorted(points.values())


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
