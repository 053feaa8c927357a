"""CVAT's "Segmentation mask 1.1": colours of labelmap.txt, never its lines, unless a mask has one channel."""

import posixpath
from functools import partial

from pipeline.errors import DatasetError
from pipeline.importing import tables
from pipeline.importing.export import BACKGROUND_NAMES, SPLITS, Export, Item, Label, Options
from pipeline.importing.masks import Entry, make_table, read_mask
from pipeline.importing.source import Source, is_photo, stem

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
    table_path = source.named("labelmap.txt")[0]
    base = posixpath.dirname(table_path)
    masks = {
        stem(path).removeprefix(posixpath.join(base, "SegmentationClass/")): path
        for path in source.under(posixpath.join(base, "SegmentationClass"))
        if path.lower().endswith(".png")
    }
    if not masks:
        raise DatasetError(
            f"{table_path}: SegmentationClass/ holds no mask; CVAT's PASCAL VOC export leaves polygons out. Export the "
            'task as "Segmentation mask 1.1" with "Save images"'
        )
    photos = _photos(source, base)
    listed, left_out = _listed(source, base)
    names = listed or dict.fromkeys(sorted(masks), ())
    without = [name for name in names if name not in photos]
    if without:
        raise DatasetError(
            f"{source.name}: {len(without)} listed photos are not in JPEGImages/, such as {without[0]}; export again "
            'with "Save images", or put the photos there'
        )
    entries = _entries(source, table_path)
    table = make_table(entries, options.class_map, table_path)
    items = [
        Item(
            photos[name],
            partial(read_mask, table, masks[name]) if name in masks else _all_background,
            splits,
        )
        for name, splits in names.items()
    ]
    left_out |= {path: "a mask in no list" for name, path in masks.items() if name not in names}
    left_out |= {path: "a photo in no list" for name, path in photos.items() if name not in names}
    left_out |= dict.fromkeys(
        source.under(posixpath.join(base, "SegmentationObject")), "objects, of which classes have no need"
    )
    return Export(
        table.classes,
        items,
        [
            f"classes: {table_path}, by colour",
            f"background: {table.classes[0]}",
            "overlaps: as CVAT drew them, by its layers",
            f"photos without a mask are all background: {sum(name not in masks for name in names)}",
            "void: none",
        ],
        left_out,
    )


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


def _photos(source: Source, base: str) -> dict[str, str]:
    folder = posixpath.join(base, "JPEGImages")
    photos: dict[str, str] = {}
    for path in source.under(folder):
        if is_photo(path):
            name = stem(path).removeprefix(f"{folder}/")
            if name in photos:
                raise DatasetError(f"{path} and {photos[name]}: two photos of one name; keep one")
            photos[name] = path
    return photos


def _listed(source: Source, base: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    names: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    for path in source.under(posixpath.join(base, "ImageSets/Segmentation")):
        subset = posixpath.basename(stem(path)).lower()
        split = (SPLITS[subset],) if subset in SPLITS else ()
        for line in source.lines(path):
            names[line] = tuple(dict.fromkeys((*names.get(line, ()), *split)))
    return names, left_out


def _all_background(source: Source, size: tuple[int, int]) -> Label:  # noqa: ARG001
    return Label(None)
