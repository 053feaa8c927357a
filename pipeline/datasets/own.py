"""A data set of your own, in one folder: images/, masks/, splits/ and classes.txt (docs/own-data.md)."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.copying import copy as copy_folders
from pipeline.datasets.layout import Layout
from pipeline.errors import DatasetError
from pipeline.shards.labels import decode_label, read_bytes, some

LAYOUT = Layout("own", lists="splits", images="images", labels="masks", suffix=".png", decode=decode_label)
FOLDERS = (LAYOUT.images, LAYOUT.labels, LAYOUT.lists)
CLASSES = "classes.txt"
GUIDE = "docs/own-data.md"


def root(raw: Path) -> Path:
    """The folder that holds images, where `copy` puts it; not checked to exist."""
    return raw / "own"


def copy(folder: Path, raw: Path, classes: Sequence[str]) -> None:
    """Copies the folder to raw/own, all or nothing, if it is laid out as the guide says.

    classes: as the profile names them; classes.txt must say the same, in the same order.
    """
    if not folder.is_dir():
        raise DatasetError(f"data.source.own: no folder {folder}; {GUIDE} says what it must hold")
    missing = [f"{name}/" for name in FOLDERS if not (folder / name).is_dir()]
    missing += [CLASSES] if not (folder / CLASSES).is_file() else []
    if missing:
        raise DatasetError(f"data.source.own: {folder} has no {', '.join(missing)}; see {GUIDE}")
    _check_classes(folder / CLASSES, classes)
    _check_suffixes(folder / LAYOUT.images, ".jpg")
    _check_suffixes(folder / LAYOUT.labels, LAYOUT.suffix)
    copy_folders({f"own/{name}": folder / name for name in (*FOLDERS, CLASSES)}, raw, "data.source.own")


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    try:
        lines = read_bytes(path, "data.source.own").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"data.source.own: {path} is not a text file: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if names != list(classes):
        raise DatasetError(
            f"data.source.own: {path} names {len(names)} classes, [{', '.join(names)}], and the profile's data.classes "
            f"{len(classes)}, [{', '.join(classes)}]; both must be the same, in the order of the label values"
        )


def _check_suffixes(folder: Path, suffix: str) -> None:
    others = sorted(path.name for path in folder.iterdir() if path.suffix != suffix and path.name[0] != ".")
    if others:
        raise DatasetError(
            f"data.source.own: {len(others)} files of {folder} are not {suffix}: {some(others)}; "
            f"{GUIDE} shows how to convert them"
        )
