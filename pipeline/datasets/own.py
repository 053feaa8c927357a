"""The copy of a user's own folder (own_files.py), under keys as names.

The copy below `raw` has the same layout, with a key as the name of each photo and its mask. NAMES leads from the keys
to the user's files.
"""

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from fcn import IGNORE_LABEL
from pipeline.config.data import VOID
from pipeline.datasets.copying import new_folder
from pipeline.datasets.layout import Layout, Shown
from pipeline.datasets.lists import read_lines
from pipeline.datasets.names import is_left_behind, key_of
from pipeline.datasets.own_files import (
    CLASSES,
    FOLDERS,
    IMAGES,
    KEY,
    LISTS,
    MASK_SUFFIX,
    MASKS,
    NAMES,
    PHOTO_SUFFIXES,
    check_layout,
    files,
    read_classes,
    read_content,
)
from pipeline.errors import DatasetError
from pipeline.files import and_more, counted, write_text
from pipeline.progress import bar
from pipeline.shards.images import REMEDY
from pipeline.shards.labels import decode_label


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
    lists=LISTS,
    images=IMAGES,
    labels=MASKS,
    suffix=MASK_SUFFIX,
    decode=decode_label,
    photo_suffixes=tuple(dict.fromkeys(PHOTO_SUFFIXES.values())),
    shown=_shown,
)


def copy(
    folder: Path,
    raw: Path,
    classes: Sequence[str],
    mapping: Mapping[str, str] = MappingProxyType({}),
    shown: Path | None = None,
) -> None:
    """Copy the folder to raw/own, if it is laid out as the guide describes.

    classes: the profile's; classes.txt must list the same names in the same order, unless a mapping is given.
    mapping: data.map of the profile.
    shown: the folder as the profile names it, which the copy records; an experiment's path to it is another.
    """
    check_layout(folder)
    _class_values(folder / CLASSES, classes, mapping)
    photos, masks, lists = read_content(folder)
    rows = _rows(folder, shown or folder, photos, masks, lists.values())
    with new_folder(raw) as building:
        for name in FOLDERS:
            (root(building) / name).mkdir(parents=True)
        with bar(len(photos) + len(masks), f"copy to {raw}", "file") as progress:
            for name, row in rows.items():
                if name in photos:
                    suffix = PHOTO_SUFFIXES[photos[name].suffix.lower()]
                    shutil.copy2(photos[name], root(building) / IMAGES / f"{row.key}{suffix}")
                    progress.update()
                if name in masks:
                    shutil.copy2(masks[name], root(building) / MASKS / f"{row.key}{MASK_SUFFIX}")
                    progress.update()
        for path, listed in lists.items():
            keys = "".join(f"{rows[name].key}\n" for name in listed)
            write_text(root(building) / LISTS / f"{path.stem}.txt", keys)
        shutil.copy2(folder / CLASSES, root(building) / CLASSES)
        write_text(root(building) / NAMES, _as_csv(rows.values()))
    passed_over = [path for path in files(folder) if is_left_behind(path)]
    if passed_over:
        which = and_more([str(path) for path in passed_over])
        print(
            f"{folder}: {counted(len(passed_over), 'file')} of systems and tools passed over: {which}",
            flush=True,
        )


def in_the_users_words(message: str, raw: Path, folder: str) -> str:
    """Return a message about the copy as one about the user's folder, with the command that goes on.

    folder: data.source.own of the profile.
    """
    message = without_remedy(message)
    for path in (root(raw).absolute(), root(raw)):
        message = message.replace(str(path), folder)
    return f"{message}\nThen run `dvc repro`"


def without_remedy(message: str) -> str:
    """Return a message about a file without the remedy for published data sets, which is to download it again."""
    for remedy in (f", or {REMEDY}", f"; {REMEDY}"):
        message = message.replace(remedy, "")
    return message


def class_values(raw: Path, classes: Sequence[str], mapping: Mapping[str, str]) -> tuple[int, ...]:
    """Return the label value that each value of the copy's masks becomes; void is IGNORE_LABEL."""
    return _class_values(root(raw) / CLASSES, classes, mapping)


def _class_values(path: Path, classes: Sequence[str], mapping: Mapping[str, str]) -> tuple[int, ...]:
    names = read_classes(path)
    if len(names) > IGNORE_LABEL:
        raise DatasetError(
            f"{KEY}: {path} names {len(names)} classes; the values of masks are 0..{IGNORE_LABEL - 1} and void, so at "
            f"most {IGNORE_LABEL} lines have a meaning: remove the lines that no mask uses, from the last on"
        )
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


def _rows(
    folder: Path,
    shown: Path,
    photos: Mapping[str, Path],
    masks: Mapping[str, Path],
    lists: Iterable[Sequence[str]],
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
        photo = photos.get(name, folder / IMAGES / f"{name}.jpg")
        mask = masks.get(name, folder / MASKS / f"{name}{MASK_SUFFIX}")
        source = imported.get(name) or (
            photo.relative_to(folder / IMAGES).as_posix() if name in photos else name
        )
        rows[name] = Name(
            key, source, str(shown / photo.relative_to(folder)), str(shown / mask.relative_to(folder))
        )
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
