"""A user's folders, copied to where the pipeline reads them, so that a later change of theirs changes no result."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError
from pipeline.progress import bar

UNUSED = ("Annotations", "SegmentationObject", "inst")  # most of a VOCdevkit's files; segmentation reads none


def copy(sources: Mapping[str, Path], raw: Path, key: str) -> None:
    """Copies files and folders to raw under the names given, without what segmentation never reads; all or nothing.

    key: the profile's, for messages.
    """
    if raw.is_dir() and any(raw.iterdir()):
        raise DatasetError(f"{key}: {raw} is not empty; remove it, its content is copied anew")
    building = raw.with_name(f".{raw.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    num_files = sum(
        len(files) for path in sources.values() for _, _, files in os.walk(path, followlinks=True)
    )
    try:
        with bar(num_files, f"copy to {raw}", "file") as progress:

            def copy_file(source: Any, target: Any) -> None:
                shutil.copy2(source, target)
                progress.update()

            for name, source in sources.items():
                target = building / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    ignored = shutil.ignore_patterns(*UNUSED)
                    shutil.copytree(source, target, ignore=ignored, copy_function=copy_file)
                else:
                    shutil.copy2(source, target)
        os.replace(building, raw)
    except shutil.Error as error:  # holds (from, to, why) of each file that failed
        faults = error.args[0]
        raise DatasetError(
            f"{key}: {len(faults)} files cannot be copied to {raw}, the first for this reason: {faults[0][2]}"
        ) from error
    except OSError as error:
        raise DatasetError(f"{key}: cannot be copied to {raw}: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def refuse_within(source: Path, outs: Path, key: str) -> None:
    """Refuses a source that lies where this profile's results go, which are emptied before they are made anew."""
    if source.resolve().is_relative_to(outs.resolve()):
        raise DatasetError(
            f"{key}: {source} lies in {outs}, whose content is removed before it is made anew; move it elsewhere"
        )
