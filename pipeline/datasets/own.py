"""A user's own data set in one folder: images/, masks/, splits/ and classes.txt (docs/own-data.md)."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.copying import copy as copy_folders
from pipeline.datasets.layout import Layout
from pipeline.datasets.lists import read_lines
from pipeline.errors import DatasetError
from pipeline.files import and_more
from pipeline.shards.labels import decode_label

LAYOUT = Layout("own", lists="splits", images="images", labels="masks", suffix=".png", decode=decode_label)
FOLDERS = (LAYOUT.images, LAYOUT.labels, LAYOUT.lists)
CLASSES = "classes.txt"
KEY = "data.source.own"
GUIDE = "docs/own-data.md"


def root(raw: Path) -> Path:
    """Return the folder below `raw` that `copy` fills, whether it exists or not."""
    return raw / "own"


def copy(folder: Path, raw: Path, classes: Sequence[str]) -> None:
    """Copy the folder to raw/own, if it is laid out as the guide describes.

    classes: the profile's; classes.txt must list the same names in the same order.
    """
    if not folder.is_dir():
        raise DatasetError(f"{KEY}: no folder {folder}; {GUIDE} describes its content")
    missing = [f"{name}/" for name in FOLDERS if not (folder / name).is_dir()]
    missing += [CLASSES] if not (folder / CLASSES).is_file() else []
    if missing:
        raise DatasetError(f"{KEY}: {folder} has no {', '.join(missing)}; see {GUIDE}")
    _check_classes(folder / CLASSES, classes)
    _check_suffixes(folder / LAYOUT.images, ".jpg")
    _check_suffixes(folder / LAYOUT.labels, LAYOUT.suffix)
    copy_folders({f"own/{name}": folder / name for name in (*FOLDERS, CLASSES)}, raw, KEY)


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    names = [line.strip() for line in read_lines(path, KEY) if line.strip()]
    if names != list(classes):
        raise DatasetError(
            f"{KEY}: {path} names {len(names)} classes, [{', '.join(names)}], and the profile's data.classes "
            f"{len(classes)}, [{', '.join(classes)}]; both must be the same, in the order of the label values"
        )


def _check_suffixes(folder: Path, suffix: str) -> None:
    others = sorted(path.name for path in folder.iterdir() if path.suffix != suffix and path.name[0] != ".")
    if others:
        raise DatasetError(
            f"{KEY}: {len(others)} files of {folder} are not {suffix}: {and_more(others)}; "
            f"{GUIDE} shows how to convert them"
        )
