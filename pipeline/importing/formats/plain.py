"""Folders of photos and masks of any kind, with a class table or without.

CamVid (class_dict.csv or label_colors.txt, *_L.png) and V7 Darwin (class_mapping.csv) are such folders as they are.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from pipeline.datasets.own_files import JPEG_SUFFIXES
from pipeline.errors import DatasetError
from pipeline.files import counted
from pipeline.importing import tables
from pipeline.importing.export import MASK_FOLDER, PHOTO_FOLDER, SPLITS, Export, Item, Options, split_of
from pipeline.importing.masks import Seen, read_mask
from pipeline.importing.scan import scan, table_of_content
from pipeline.importing.source import PHOTO_SUFFIXES, Source, is_photo, nfc, stem
from pipeline.importing.tables import Table, make_table

_MASK_STEM = re.compile(
    r"(?P<name>.+?)(?:(?i:[_.-](?:masks?|labels?|seg|segmentation|gt|annotation|groundtruth))|_L"
    r"|_gt(?:Fine|Coarse)_label(?:Train)?Ids)",
)
_PHOTO_STEM = re.compile(r"(?P<name>.+?)_leftImg8bit")
# The photo in a line: "photo" "mask" of CamVid, photo.jpg,photo.png, or VOC's photo -1
_LISTED = re.compile(
    rf"""[^"]*"([^"]+)"|(.+?(?:{"|".join(map(re.escape, PHOTO_SUFFIXES))}))(?=[\s,;]|$)|(\S+)(?:[\s,;]+-?\d+)+$""",
    re.IGNORECASE,
)
_NO_MASK = re.compile(r".*_(gtFine|gtCoarse)_(color|instanceIds|instanceTrainIds|polygons)|.*masks_human/.*")


class Pairs(NamedTuple):
    """Photos with their masks, by the photo's path; and the files of which the other half is missing."""

    masks: Mapping[str, str]
    photos_alone: list[str]
    masks_alone: list[str]


class _Name(NamedTuple):
    """The name of a picture.

    folders: those that name neither photos nor masks, in lower case.
    is_mask: what the innermost folder of either kind says; None without one.
    last: of the file, without ending.
    """

    folders: tuple[str, ...]
    is_mask: bool | None
    last: str


def pair(source: Source) -> Pairs:
    """Find the mask of each photo by names alone.

    Names of folders such as images and masks, and endings such as _mask, are dropped; what remains must be equal. If
    no pair is found so, the longest equal ends of paths decide: raw/day 1/a.jpg belongs to masks/day 1/a.png.
    """
    pictures = [path for path in source.files if is_photo(path) and not _NO_MASK.fullmatch(stem(path))]
    photos: dict[tuple[str, ...], list[str]] = defaultdict(list)
    masks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    drawn = []
    named = {path: _name(path) for path in pictures}
    has_folder = any(name.is_mask for name in named.values())
    for path, name in named.items():
        may_be_mask = name.is_mask is None or not has_folder  # else 0_L.jpg in images/ is a photo
        if name.is_mask or (may_be_mask and _MASK_STEM.fullmatch(name.last)):
            drawn.append((path, name))
        else:
            photos[*name.folders, name.last].append(path)
    for path, name in drawn:
        match = _MASK_STEM.fullmatch(name.last)
        whole = (*name.folders, name.last)
        key = (*name.folders, match["name"]) if match and whole not in photos else whole
        if (
            not name.is_mask and path.lower().endswith(JPEG_SUFFIXES) and key not in photos
        ):  # man_with_mask.jpg
            photos[whole].append(path)
        else:
            masks[key].append(path)
    if not masks:  # a.jpg beside a.png
        for key, paths in photos.items():
            pngs = [path for path in paths if path.lower().endswith(".png")]
            if len(paths) == 2 and len(pngs) == 1:
                paths.remove(pngs[0])
                masks[key] = pngs
    depth = max(map(len, [*photos, *masks]), default=0)
    while depth > 1 and not photos.keys() & masks.keys():
        depth -= 1
        photos, masks = _by_end(photos, depth), _by_end(masks, depth)
    found: dict[str, str] = {}
    for key in photos.keys() & masks.keys():
        if len(photos[key]) > 1 or len(masks[key]) > 1:
            names = ", ".join([*photos[key], *masks[key]])
            raise DatasetError(
                f"{source.name}: {names}: more than one photo or mask of the same name; keep one of each"
            )
        found[photos[key][0]] = masks[key][0]
    used = {*found, *found.values()}
    alone = [
        sorted(path for paths in group.values() for path in paths if path not in used)
        for group in (photos, masks)
    ]
    _refuse_second_masks([*alone[0], *alone[1]], found)
    return Pairs(dict(sorted(found.items())), alone[0], alone[1])


def _refuse_second_masks(alone: Sequence[str], found: Mapping[str, str]) -> None:
    """Refuse a_mask_1.png beside the mask a_mask.png: its object would become background."""
    mask_of = {stem(mask): mask for mask in found.values()}
    for path in alone:
        match = re.fullmatch(r"(.+)[_.-]\d+", stem(path))
        if match and match[1] in mask_of and _MASK_STEM.fullmatch(posixpath.basename(match[1])):
            raise DatasetError(
                f"{path}: one more mask of a photo, beside {mask_of[match[1]]}; draw all masks of a photo into one "
                "file, or remove it"
            )


def _name(path: str) -> _Name:
    *folders, last = stem(nfc(path)).split("/")
    is_mask: bool | None = None
    kept: list[str] = []
    for folder in folders:
        mask, photo = MASK_FOLDER.fullmatch(folder), PHOTO_FOLDER.fullmatch(folder)
        match = mask or photo
        is_mask = mask is not None if match else is_mask
        rest = [match["before"], match["after"]] if match else [folder]
        kept += [part.lower() for part in rest if part]
    match = _PHOTO_STEM.fullmatch(last)
    return _Name(tuple(kept), is_mask, match["name"] if match else last)


def _by_end(groups: Mapping[tuple[str, ...], list[str]], depth: int) -> dict[tuple[str, ...], list[str]]:
    """Return the paths by the last `depth` parts of their names."""
    result: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, paths in groups.items():
        result[key[-depth:]] += paths
    return result


def matches(source: Source) -> str | None:
    found = pair(source).masks
    return f"{counted(len(found), 'photo')} with a mask of the same name" if found else None


def read(source: Source, options: Options) -> Export:
    """Read a folder with its class table, or with the classes that its masks show."""
    pairs = pair(source)
    if not pairs.masks:
        raise DatasetError(
            f"{source.name}: no photo with a mask of the same name, such as images/a.jpg, masks/a.png"
        )
    path = tables.find(source)
    entries = tables.read(source, path) if path else []
    seen: Mapping[str, Seen] = {}
    has_names_only = all(entry.colour is None and entry.value is None for entry in entries)
    if has_names_only and len(entries) <= 2:
        names = [entry.name for entry in entries]
        found = scan(source, list(pairs.masks.values()), options.workers)
        table, sentence = table_of_content(found, names, options.class_map)
        seen = found.seen
    else:
        table = make_table(entries, options.class_map, path or source.name)
        sentence = f"classes: {path}"
        if has_names_only:
            sentence += "; a mask's value is the line of its class, from 0"
    return export_of(source, pairs, table, [sentence, "255 is void where no class has it"], seen)


def export_of(
    source: Source, pairs: Pairs, table: Table, decisions: list[str], seen: Mapping[str, Seen] = {}
) -> Export:
    """Return the export of pairs whose masks have one table.

    seen: masks that a scan decoded, by path.
    """
    lists, sentences = read_lists(source, list(pairs.masks))
    items = [
        Item(
            photo,
            partial(read_mask, table, mask, seen=seen.get(mask)),
            lists.get(photo, ()) if lists else split_of(photo),
        )
        for photo, mask in pairs.masks.items()
    ]
    left_out = dict.fromkeys(pairs.photos_alone, "a photo without a mask")
    left_out |= dict.fromkeys(pairs.masks_alone, "a mask without a photo")
    if pairs.photos_alone:
        decisions = [*decisions, f"left out: {counted(len(pairs.photos_alone), 'photo')} without a mask"]
    return Export(table.classes, items, [*decisions, *sentences], left_out, has_mask_values=True)


def read_lists(source: Source, photos: list[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the splits of photos by lists such as train.txt, and sentences; both empty without lists."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for photo in photos:
        parts = stem(nfc(photo)).split("/")
        for start in range(len(parts)):
            by_name["/".join(parts[start:])].append(photo)
    result: dict[str, list[str]] = defaultdict(list)
    used, sentences = [], []
    for path in source.files:
        name, ending = posixpath.splitext(posixpath.basename(path))
        if ending.lower() != ".txt" or name.lower() not in SPLITS:
            continue
        split, stray = SPLITS[name.lower()], []
        lines = source.lines(path)
        for line in lines:
            found = _listed(line, by_name)
            if found is None:
                stray.append(line)
            elif split not in result[found]:
                result[found].append(split)
        if len(stray) < len(lines):
            used.append(path)
        if stray:
            sentences.append(
                f"splits: {len(stray)} of {counted(len(lines), 'line')} of {path} name no photo with a mask, or "
                f"several, such as {stray[0][:80]!r}"
            )
    if used:
        sentences.insert(0, f"splits: the lists {', '.join(used)}")
    return {photo: tuple(splits) for photo, splits in result.items()}, sentences


def _listed(line: str, by_name: Mapping[str, list[str]]) -> str | None:
    """Return the one photo that a line names: its path, with or without folders and ending.

    Of a path from another place, such as /home/me/set/images/a.jpg, the longest end that names a photo and its folder.
    """
    match = _LISTED.match(line)
    for text in (line, next(filter(None, match.groups())) if match else line):
        path = nfc(text).replace("\\", "/")
        parts = path.removeprefix("./").lstrip("/").split("/")
        is_elsewhere = path.startswith(("/", "../")) or path[1:3] == ":/"
        for start in range(max(1, len(parts) - 1) if is_elsewhere else 1):
            name = "/".join(parts[start:])
            for known in (name, stem(name)):
                if len(found := by_name.get(known, [])) == 1:
                    return found[0]
    return None
