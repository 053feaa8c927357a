"""The user's own folder as it lies there: images/, masks/, splits/ and classes.txt, read and checked.

docs/own-data.md describes it to the user; own.py copies it.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.datasets.lists import read_lines, refuse_repeated
from pipeline.datasets.names import is_left_behind
from pipeline.errors import DatasetError
from pipeline.files import and_more, counted

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")  # in any case
PHOTO_SUFFIXES = {suffix: ".jpg" for suffix in JPEG_SUFFIXES} | {  # a user's ending, and the copy's
    ".png": ".png",
    ".tif": ".tif",
    ".tiff": ".tif",
    ".webp": ".webp",
    ".bmp": ".bmp",
}
CLASSES, NAMES = "classes.txt", "names.csv"
KEY = "data.source.own"
GUIDE = "docs/own-data.md"
IMAGES, MASKS, LISTS = FOLDERS = ("images", "masks", "splits")
MASK_SUFFIX = ".png"


class Content(NamedTuple):
    """The files of a user's folder.

    photos, masks: by name, the path below images/ or masks/ without ending.
    lists: by the path of the list, the names in it.
    """

    photos: dict[str, Path]
    masks: dict[str, Path]
    lists: dict[Path, list[str]]


def check_layout(folder: Path) -> None:
    """Raise DatasetError unless the folder has what the guide describes."""
    if not folder.is_dir():
        raise DatasetError(f"{KEY}: no folder {folder}; {GUIDE} describes its content")
    missing = [f"{name}/" for name in FOLDERS if not (folder / name).is_dir()]
    missing += [CLASSES] if not (folder / CLASSES).is_file() else []
    if missing:
        raise DatasetError(f"{KEY}: {folder} has no {', '.join(missing)}; see {GUIDE}")


def read_content(folder: Path) -> Content:
    """Return the files of a folder that `check_layout` accepts."""
    photos = _by_name(folder / IMAGES, PHOTO_SUFFIXES)
    masks = _by_name(folder / MASKS, {MASK_SUFFIX: MASK_SUFFIX})
    lists = {path: _read_list(path, photos, masks) for path in _lists(folder / LISTS)}
    return Content(photos, masks, lists)


def fingerprint(folder: Path) -> str:
    """Return a digest of the names, sizes and times of change of the files that `copy` reads; "" without the folder."""
    states = []
    for path in files(folder):
        if not is_left_behind(path):
            try:
                state = (folder / path).stat()
            except OSError:  # a dangling link, which `copy` reports
                continue
            states.append((str(path), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(states).encode()).hexdigest() if states else ""


def files(folder: Path) -> list[PurePosixPath]:
    """Return the paths of all files that `copy` reads or passes over, relative to the folder."""
    below = [PurePosixPath(name, path) for name in FOLDERS for path in _walk(folder / name)]
    beside = [
        path for path in _walk(folder, deep=False) if str(path) in (CLASSES, NAMES) or is_left_behind(path)
    ]
    return below + beside


def _walk(folder: Path, *, deep: bool = True) -> list[PurePosixPath]:
    """Return the paths of all files, relative to the folder, sorted.

    deep: those in folders inside as well.
    """
    paths = []
    for directory, folders, files in os.walk(folder, followlinks=True):
        below = PurePosixPath(Path(directory).relative_to(folder).as_posix())
        paths += [below / file for file in files]
        if not deep:
            folders.clear()
    return sorted(paths)


def read_classes(path: Path) -> list[str]:
    """Return the names in classes.txt; blank lines are passed over."""
    return [line.strip() for line in read_lines(path, KEY) if line.strip()]


def _by_name(folder: Path, suffixes: Mapping[str, str]) -> dict[str, Path]:
    """Return the files of a folder by their path in it without ending; refuse other files and two of one name."""
    by_name: dict[str, Path] = {}
    others = []
    for path in _walk(folder):
        if is_left_behind(path):
            continue
        if path.suffix.lower() not in suffixes:
            others.append(path)
            continue
        name = _without_ending(path)
        if not name.isascii() and name.encode(errors="replace") != name.encode(errors="surrogateescape"):
            raise DatasetError(f"{KEY}: {folder} holds {name!r}, whose name is not UTF-8; rename it")
        if name in by_name:
            raise DatasetError(
                f"{KEY}: {by_name[name]} and {folder / path} have the same name {name!r}; remove or rename one"
            )
        by_name[name] = folder / path
    if others:
        raise DatasetError(_others_message(folder, others, suffixes))
    return by_name


def _others_message(folder: Path, others: Sequence[PurePosixPath], suffixes: Mapping[str, str]) -> str:
    is_mask = len(suffixes) == 1
    names = and_more([str(path) for path in others])
    which = f"{counted(len(others), 'file')} of {folder} not {', '.join(suffixes)}: {names}"
    if is_mask and any(path.suffix.lower() in JPEG_SUFFIXES for path in others):
        return f"{KEY}: {which}; JPEG changes label values: save the masks as PNG from the annotation tool"
    remedy = "`fcn import` reads other kinds of masks" if is_mask else "save them as PNG"
    return f"{KEY}: {which}; {remedy}, or move them elsewhere; see {GUIDE}"


def _without_ending(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path.with_suffix("")))


def _lists(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".txt" and not is_left_behind(PurePosixPath(path.name)):
            yield path


def _read_list(path: Path, photos: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str]:
    """Return the names in a list; a line may name the photo's file as well, with ending and from any folder on."""
    lines = [line.strip() for line in read_lines(path, KEY)]
    listed = [_listed_name(line, photos, masks) for line in lines if line]
    if not listed:
        raise DatasetError(f"{KEY}: {path} lists no images; fill it, or remove it")
    refuse_repeated(listed, f"{KEY}: {path}", "remove the lines too many")
    return listed


def _listed_name(line: str, photos: Mapping[str, Path], masks: Mapping[str, Path]) -> str:
    line = unicodedata.normalize("NFC", line)
    path = PurePosixPath(line.replace("\\", "/"))
    # Tools write paths from a folder of their own, such as /home/me/set/images/a.jpg; the first that leads to a photo
    starts = [number + 1 for number, part in enumerate(path.parts[:-1]) if part == IMAGES]
    belows = [PurePosixPath(*path.parts[start:]) for start in [0, *starts]]
    candidates = [line, *map(str, belows)]
    if path.suffix.lower() in PHOTO_SUFFIXES:
        candidates += map(_without_ending, belows)
    # A name without photo is reported as missing when it is read, or left out with data.allow_partial
    known = (name for files in (photos, masks) for name in candidates if name in files)
    return next(known, candidates[-1])
