"""Copies of a user's folders for the pipeline to read, so that later changes of the originals change no result."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError
from pipeline.files import whole_folder
from pipeline.progress import bar

UNUSED = ("Annotations", "SegmentationObject", "inst")  # most of a VOCdevkit's files; segmentation reads none


@contextmanager
def new_folder(raw: Path) -> Iterator[Path]:
    """Give a folder that appears as `raw` once it is complete; refuse to replace anything but an empty folder."""
    if raw.exists() and (not raw.is_dir() or any(raw.iterdir())):
        raise DatasetError(f"{raw} is not empty; remove it, so that it can be filled again")
    try:
        with whole_folder(raw) as folder:
            yield folder
    except OSError as error:
        raise DatasetError(f"{raw} cannot be filled: {error}") from error


def copy(sources: Mapping[str, Path], raw: Path, key: str) -> None:
    """Copy files and folders into the new folder `raw`, without the folders that segmentation never reads.

    sources: by name below `raw`.
    key: the profile's key that names the source, for messages.
    """
    num_files = sum(
        len(files) for path in sources.values() for _, _, files in os.walk(path, followlinks=True)
    )
    with new_folder(raw) as folder, bar(num_files, f"copy to {raw}", "file") as progress:

        def copy_file(source: Any, target: Any) -> None:
            shutil.copy2(source, target)
            progress.update()

        for name, source in sources.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if source.is_dir():
                    ignore = shutil.ignore_patterns(*UNUSED)
                    shutil.copytree(source, target, ignore=ignore, copy_function=copy_file)
                else:
                    shutil.copy2(source, target)
            except (
                shutil.Error
            ) as error:  # its argument lists (source, target, reason) of each file that failed
                failures = error.args[0]
                raise DatasetError(
                    f"{key}: {len(failures)} files cannot be copied to {raw}, the first because: {failures[0][2]}"
                ) from error


def refuse_within(source: Path, outs: Path, key: str) -> None:
    """Refuse a source below the profile's results, which are emptied before they are written again.

    outs: the folder of the results.
    key: the profile's key that names the source, for messages.
    """
    if source.resolve().is_relative_to(outs.resolve()):
        raise DatasetError(
            f"{key}: {source} lies in {outs}, whose content this stage removes; move it elsewhere"
        )
