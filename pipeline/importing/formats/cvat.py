"""CVAT's "Segmentation mask 1.1": colours of labelmap.txt, never its lines, unless a mask has one channel."""

import posixpath
from functools import partial

import numpy as np

from pipeline.errors import DatasetError
from pipeline.files import counted
from pipeline.importing import tables
from pipeline.importing.classes import BACKGROUND_NAMES
from pipeline.importing.export import SPLITS, Export, Item, Label, Options
from pipeline.importing.masks import read_mask
from pipeline.importing.source import Source, is_photo, nfc, stem
from pipeline.importing.tables import Entry, Table, make_table

SIGN = "labelmap.txt beside SegmentationClass/ or ImageSets/Segmentation/ (CVAT, Segmentation mask 1.1)"
BLACK = (0, 0, 0)


def matches(source: Source) -> str | None:
    for path in source.named("labelmap.txt"):
        base = posixpath.dirname(path)
        for folder in ("SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
            if source.under(posixpath.join(base, folder)):
                return f"{path} and {folder}/"
    return None


def read(source: Source, options: Options) -> Export:
    """Read one task or project, or several beside each other whose label maps are equal."""
    paths = source.named("labelmap.txt")
    tables.check_equal(source, paths)
    entries = _entries(source, paths[0])
    background = next((entry.name for entry in entries if entry.colour == BLACK), None)
    table = make_table(entries, options.class_map, paths[0], background)
    items: list[Item] = []
    left_out: dict[str, str] = {}
    num_without = 0
    for path in paths:
        base = posixpath.dirname(path)
        masks = _named(source, posixpath.join(base, "SegmentationClass"))
        if not masks:
            raise DatasetError(
                f"{path}: SegmentationClass/ holds no mask; CVAT's PASCAL VOC export leaves polygons out. Export the "
                'task as "Segmentation mask 1.1" with "Save images"'
            )
        photos = _named(source, posixpath.join(base, "JPEGImages"))
        names = _listed(source, base) or dict.fromkeys(sorted(masks), ())
        without = [name for name in names if name not in photos]
        if without:
            raise DatasetError(
                f"{path}: {counted(len(without), 'listed photo')} not in JPEGImages/, such as {without[0]}; export "
                'again with "Save images", or put the photos there'
            )
        for name, splits in names.items():
            label = partial(read_mask, table, masks[name]) if name in masks else partial(_all_black, table)
            items.append(Item(photos[name], label, splits))
        num_without += sum(name not in masks for name in names)
        left_out |= {mask: "a mask in no list" for name, mask in masks.items() if name not in names}
        left_out |= {photo: "a photo in no list" for name, photo in photos.items() if name not in names}
        left_out |= dict.fromkeys(
            source.under(posixpath.join(base, "SegmentationObject")), "masks of objects, not of classes"
        )
    decisions = [
        f"classes: {paths[0]}, by colour",
        f"background: {background or table.classes[0]}",
        "overlaps: as CVAT drew them, by its layers",
        f"photos without a mask are all background: {num_without}",
        f"void: {tables.void_names(entries, table)}",
    ]
    ground = background or ""
    return Export(table.classes, items, decisions, left_out, has_mask_values=True, background=ground)


def _entries(source: Source, path: str) -> list[Entry]:
    """Return the label map's lines; (0,0,0) is the background, or else the line of that name, or else added."""
    entries = tables.read(source, path)
    black = next((number for number, entry in enumerate(entries) if entry.colour == BLACK), None)
    named = next(
        (number for number, entry in enumerate(entries) if entry.name.casefold() in BACKGROUND_NAMES), None
    )
    if black is None and named is None:
        return [*entries, Entry("background", BLACK)]
    if black is None and named is not None and entries[named].colour is None:
        entries[named] = entries[named]._replace(colour=BLACK)
    return entries


def _named(source: Source, folder: str) -> dict[str, str]:
    """Return the pictures of a folder by name without ending."""
    named: dict[str, str] = {}
    for path in source.under(folder):
        if is_photo(path):
            name = nfc(stem(path).removeprefix(f"{folder}/"))
            if name in named:
                raise DatasetError(f"{path} and {named[name]}: two pictures of one name; keep one")
            named[name] = path
    return named


def _listed(source: Source, base: str) -> dict[str, tuple[str, ...]]:
    """Return the listed names with their splits."""
    names: dict[str, tuple[str, ...]] = {}
    for path in source.under(posixpath.join(base, "ImageSets/Segmentation")):
        subset = posixpath.basename(stem(path)).lower()
        split = (SPLITS[subset],) if subset in SPLITS else ()
        for line in map(nfc, source.lines(path)):
            names[line] = tuple(dict.fromkeys((*names.get(line, ()), *split)))
    return names


def _all_black(table: Table, source: Source, size: tuple[int, int]) -> Label:  # noqa: ARG001
    label = table.colours.get(BLACK, 0)
    return Label(np.full(size, label, np.uint8)) if label else Label(None)
