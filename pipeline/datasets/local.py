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
UNUSED = ("Annotations", "SegmentationObject", "inst")  # most of a VOCdevkit's files; segmentation reads none


def copy(local: Path, raw: Path) -> None:
    """Copies VOCdevkit, TrainVal and benchmark_RELEASE, those that are there, from `local` to raw; all or nothing."""
    if raw.is_dir() and any(raw.iterdir()):
        raise DatasetError(f"data.source.local: {raw} is not empty; remove it, its content is copied anew")
    if not local.is_dir():
        raise DatasetError(
            f"data.source.local: no folder {local}; give the path of a folder that holds {_any_of(TOPS)}"
        )
    found = [top for top in TOPS if (local / top).is_dir()]
    if not found:
        there = ", ".join(sorted(path.name for path in local.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"data.source.local: {local} holds {there}; expected {_any_of(TOPS)} as the archives unpack"
        )
    building = raw.with_name(f".{raw.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        for top in found:
            shutil.copytree(local / top, building / top, ignore=shutil.ignore_patterns(*UNUSED))
        os.replace(building, raw)
    except shutil.Error as error:  # holds (from, to, why) of each file that failed
        raise DatasetError(
            f"data.source.local: {len(error.args[0])} files of {local} cannot be copied to {raw}, "
            f"the first for this reason: {error.args[0][0][2]}"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _any_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
