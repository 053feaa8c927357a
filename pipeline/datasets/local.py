"""Data sets that lie on this machine already, as their archives unpack."""

import os
import shutil
from pathlib import Path

from pipeline.errors import DatasetError

TOPS = (
    "VOCdevkit",
    "TrainVal",
    "benchmark_RELEASE",
)  # what the archives of VOC (2011: TrainVal) and SBD hold


def copy(local: Path, raw: Path) -> None:
    """Copies VOCdevkit, TrainVal and benchmark_RELEASE, those that are there, from `local` to raw; all or nothing."""
    if not local.is_dir():
        raise DatasetError(
            f"data.local: no folder {local}; give the path of a folder that holds {_any_of(TOPS)}"
        )
    found = [top for top in TOPS if (local / top).is_dir()]
    if not found:
        there = ", ".join(sorted(path.name for path in local.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"data.local: {local} holds {there}; expected {_any_of(TOPS)} as the archives unpack"
        )
    building = raw.with_name(f".{raw.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    for top in found:
        # Only what segmentation reads: the rest of a VOCdevkit is most of its files
        shutil.copytree(
            local / top,
            building / top,
            ignore=shutil.ignore_patterns("Annotations", "SegmentationObject", "inst"),
        )
    os.replace(building, raw)


def merge(unpacked: Path, raw: Path) -> None:
    """Moves an unpacked archive's folders into raw, beside those of other archives."""
    for path in sorted(unpacked.rglob("*")):
        target = raw / path.relative_to(unpacked)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)
    shutil.rmtree(unpacked)


def _any_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
