"""A user's own data set in one folder: images/, masks/, splits/ and classes.txt (docs/own-data.md).

The copy below `raw` has the same layout, with a key as the name of each photo and its mask. NAMES leads from the keys
to the user's files.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from fcn import IGNORE_LABEL
from pipeline.config.data import VOID
from pipeline.datasets.copying import new_folder
from pipeline.datasets.layout import Layout, Shown
from pipeline.datasets.lists import read_lines, refuse_repeated
from pipeline.datasets.names import is_left_behind, key_of
from pipeline.errors import DatasetError
from pipeline.files import and_more, write_text
from pipeline.progress import bar
from pipeline.shards.images import REMEDY
from pipeline.shards.labels import decode_label

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


class Name(NamedTuple):
    """A row of NAMES.

    key: of the sample.
    source: the user's own name of the photo: its path in images/, or in the export that `fcn import` read.
    photo: the path of the user's file.
    mask: the path of the user's file.
    """

    key: str
    source: str
    photo: str
    mask: str


def root(raw: Path) -> Path:
    """Return the folder below `raw` that `copy` fills, whether it exists or not."""
    return raw / "own"


def names(folder: Path) -> dict[str, Name]:
    """Return the rows of a copy's NAMES by key; none for the copies of earlier versions, which have no such file."""
    path = folder / NAMES
    return _read_names(path, path.stat().st_mtime_ns) if path.is_file() else {}


def sources(raw: Path) -> dict[str, str]:
    """Return the user's own names by key, of photos whose key says less."""
    rows = names(root(raw)).values()
    return {row.key: row.source for row in rows if str(PurePosixPath(row.source).with_suffix("")) != row.key}


@cache
def _read_names(path: Path, mtime_ns: int) -> dict[str, Name]:  # noqa: ARG001  # another copy is read again
    with path.open(encoding="utf-8", newline="") as file:
        return {row["key"]: Name(**row) for row in csv.DictReader(file)}


def _shown(folder: Path, key: str) -> Shown | None:
    name = names(folder).get(key)
    return Shown(name.source, name.photo, name.mask) if name else None


LAYOUT = Layout(
    "own",
    lists="splits",
    images="images",
    labels="masks",
    suffix=".png",
    decode=decode_label,
    photo_suffixes=tuple(dict.fromkeys(PHOTO_SUFFIXES.values())),
    shown=_shown,
)
FOLDERS = (LAYOUT.images, LAYOUT.labels, LAYOUT.lists)


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
    photos = _by_name(folder / LAYOUT.images, PHOTO_SUFFIXES)
    masks = _by_name(folder / LAYOUT.labels, {LAYOUT.suffix: LAYOUT.suffix})
    lists = {path: _read_list(path, photos, masks) for path in _lists(folder / LAYOUT.lists)}
    return Content(photos, masks, lists)


def copy(
    folder: Path, raw: Path, classes: Sequence[str], mapping: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Copy the folder to raw/own, if it is laid out as the guide describes.

    classes: the profile's; classes.txt must list the same names in the same order, unless a mapping is given.
    mapping: data.map of the profile.
    """
    check_layout(folder)
    _class_values(folder / CLASSES, classes, mapping)
    photos, masks, lists = read_content(folder)
    rows = _rows(folder, photos, masks, lists.values())
    with new_folder(raw) as building:
        for name in FOLDERS:
            (root(building) / name).mkdir(parents=True)
        with bar(len(photos) + len(masks), f"copy to {raw}", "file") as progress:
            for name, row in rows.items():
                if name in photos:
                    suffix = PHOTO_SUFFIXES[photos[name].suffix.lower()]
                    shutil.copy2(photos[name], root(building) / LAYOUT.images / f"{row.key}{suffix}")
                    progress.update()
                if name in masks:
                    shutil.copy2(masks[name], root(building) / LAYOUT.labels / f"{row.key}{LAYOUT.suffix}")
                    progress.update()
        for path, listed in lists.items():
            keys = "".join(f"{rows[name].key}\n" for name in listed)
            write_text(root(building) / LAYOUT.lists / f"{path.stem}.txt", keys)
        shutil.copy2(folder / CLASSES, root(building) / CLASSES)
        write_text(root(building) / NAMES, _as_csv(rows.values()))
    passed_over = [path for path in _files(folder) if is_left_behind(path)]
    if passed_over:
        which = and_more([str(path) for path in passed_over])
        print(f"{folder}: {len(passed_over)} files of systems and tools passed over: {which}", flush=True)


def in_the_users_words(message: str, raw: Path, folder: str) -> str:
    """Return a message about the copy as one about the user's folder, with the command that goes on.

    folder: data.source.own of the profile.
    """
    for remedy in (f", or {REMEDY}", f"; {REMEDY}"):
        message = message.replace(remedy, "")
    for path in (root(raw).absolute(), root(raw)):
        message = message.replace(str(path), folder)
    return f"{message}\nThen run `dvc repro`"


def fingerprint(folder: Path) -> str:
    """Return a digest of the names, sizes and times of change of the files that `copy` reads; "" without the folder."""
    states = []
    for path in _files(folder):
        if not is_left_behind(path):
            try:
                state = (folder / path).stat()
            except OSError:  # a dangling link, which `copy` reports
                continue
            states.append((str(path), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(states).encode()).hexdigest() if states else ""


def _files(folder: Path) -> list[PurePosixPath]:
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


def class_values(raw: Path, classes: Sequence[str], mapping: Mapping[str, str]) -> tuple[int, ...]:
    """Return the label value that each value of the copy's masks becomes; void is IGNORE_LABEL."""
    return _class_values(root(raw) / CLASSES, classes, mapping)


def read_classes(path: Path) -> list[str]:
    """Return the names in classes.txt; blank lines are passed over."""
    return [line.strip() for line in read_lines(path, KEY) if line.strip()]


def _class_values(path: Path, classes: Sequence[str], mapping: Mapping[str, str]) -> tuple[int, ...]:
    names = read_classes(path)
    there, wanted = (f"{len(each)} classes, [{', '.join(each)}]" for each in (names, classes))
    if not mapping:
        if names != list(classes):
            raise DatasetError(
                f"{KEY}: {path} names {there}, and the profile's data.classes {wanted}; both must be the same, in the "
                "order of the label values, or data.map must lead from the first to the second"
            )
        return tuple(range(len(names)))
    if unknown := sorted(mapping.keys() - set(names)):
        raise DatasetError(f"data.map: no class {', '.join(unknown)} in {path}, which names {there}")
    targets = [mapping.get(name, name) for name in names]
    lost = [name for name, target in zip(names, targets, strict=True) if target not in (*classes, VOID)]
    if lost:
        raise DatasetError(
            f"data.map: {and_more(lost)} of {path} are not in data.classes, {wanted}, and data.map leads them nowhere; "
            f"to leave them out, add `{lost[0]}: {VOID}`"
        )
    if empty := [name for name in classes if name not in targets]:
        raise DatasetError(f"data.map: no class of {path} becomes {and_more(empty)} of data.classes")
    return tuple(list(classes).index(target) if target in classes else IGNORE_LABEL for target in targets)


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
    which = (
        f"{len(others)} files of {folder} are not {', '.join(suffixes)}: {and_more([str(p) for p in others])}"
    )
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
    """Return the names in a list; a line may name the photo's file as well, with ending or below images/."""
    lines = [line.strip() for line in read_lines(path, KEY)]
    listed = [_listed_name(line, photos, masks) for line in lines if line]
    if not listed:
        raise DatasetError(f"{KEY}: {path} lists no images; fill it, or remove it")
    refuse_repeated(listed, f"{KEY}: {path}", "remove the lines too many")
    return listed


def _listed_name(line: str, photos: Mapping[str, Path], masks: Mapping[str, Path]) -> str:
    line = unicodedata.normalize("NFC", line)
    path = PurePosixPath(line.replace("\\", "/"))
    below = path.relative_to(LAYOUT.images) if path.is_relative_to(LAYOUT.images) else path
    candidates = [line, str(path), str(below)]
    if path.suffix.lower() in PHOTO_SUFFIXES:
        candidates += [_without_ending(path), _without_ending(below)]
    # A name without photo is reported as missing when it is read, or left out with data.allow_partial
    known = (name for files in (photos, masks) for name in candidates if name in files)
    return next(known, candidates[-1])


def _rows(
    folder: Path, photos: Mapping[str, Path], masks: Mapping[str, Path], lists: Iterable[Sequence[str]]
) -> dict[str, Name]:
    """Return the row of NAMES of each name: of photos, of masks, and of lists."""
    imported = _imported(folder / NAMES)
    rows: dict[str, Name] = {}
    names: dict[str, str] = {}
    for name in sorted({*photos, *masks, *(name for listed in lists for name in listed)}):
        key = key_of(name)
        if names.setdefault(key, name) != name:
            raise DatasetError(
                f"{KEY}: {names[key]!r} and {name!r} of {folder} get the same key {key}; rename one"
            )
        photo = photos.get(name, folder / LAYOUT.images / f"{name}.jpg")
        mask = masks.get(name, folder / LAYOUT.labels / f"{name}{LAYOUT.suffix}")
        source = imported.get(name) or (
            photo.relative_to(folder / LAYOUT.images).as_posix() if name in photos else name
        )
        rows[name] = Name(key, source, str(photo), str(mask))
    return rows


def _imported(path: Path) -> dict[str, str]:
    """Return the names in the source that `fcn import` read, by key; none without its file."""
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO("\n".join(read_lines(path, KEY))))
    return {row["key"]: row["source"] for row in rows if row.get("key") and row.get("source")}


def _as_csv(rows: Iterable[Name]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Name._fields)
    writer.writerows(sorted(rows))
    return file.getvalue()
