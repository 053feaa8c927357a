"""Data sets in the archives they are published as."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.archive import extract


def unpack(archives: Sequence[Path], raw: Path) -> None:
    """Unpacks the archives beside each other into raw, which must be empty or not there; all or nothing."""
    building = raw.with_name(f".{raw.name}.unpacking")
    shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
    try:
        for number, archive in enumerate(archives):
            extract(archive, building / str(number))
            merge(building / str(number), building / "merged")
        os.replace(building / "merged", raw)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def merge(unpacked: Path, raw: Path) -> None:
    """Moves an unpacked archive's folders into raw, beside those of other archives."""
    raw.mkdir(parents=True, exist_ok=True)
    for path in sorted(unpacked.rglob("*")):
        target = raw / path.relative_to(unpacked)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)
    shutil.rmtree(unpacked)
