"""The output of labelme2voc: class_names.txt, JPEGImages/ and palette PNGs, or arrays where there are none."""

import io
import posixpath
from functools import partial

import numpy as np

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.importing import tables
from pipeline.importing.export import UNKNOWN, Export, Item, Label, Options, split_of
from pipeline.importing.masks import VOID_VALUES, read_mask
from pipeline.importing.source import PHOTO_SUFFIXES, Source, nfc, stem
from pipeline.importing.tables import Entry, Table, make_table
from pipeline.shards.images import MAX_PIXELS

SIGN = "class_names.txt beside JPEGImages/ and SegmentationClass*/ (labelme2voc)"
FOLDERS = (
    "SegmentationClassPNG",
    "SegmentationClass",
    "SegmentationClassNpy",
)  # of version 5.0, 5.1 and later


def matches(source: Source) -> str | None:
    for path in source.named("class_names.txt"):
        base = posixpath.dirname(path)
        if any(source.under(posixpath.join(base, folder)) for folder in FOLDERS):
            return path
    return None


def read(source: Source, options: Options) -> Export:
    paths = source.named("class_names.txt")
    tables.check_equal(source, paths)
    table_path = paths[0]
    # __ignore__ is -1 in the arrays, and has no line of its own in the count
    names = [name for name in source.lines(table_path) if name != "__ignore__"]
    entries = [Entry(name, value=number) for number, name in enumerate(names)]
    table = make_table(entries, options.class_map, table_path)
    items: list[Item] = []
    left_out: dict[str, str] = {}
    for base in map(posixpath.dirname, paths):
        photos = _by_name(source, posixpath.join(base, "JPEGImages"), PHOTO_SUFFIXES)
        masks: dict[str, str] = {}
        for suffix in (".npy", ".png"):  # a PNG is preferred
            for folder in FOLDERS:
                masks |= _by_name(source, posixpath.join(base, folder), (suffix,))
        for key, path in masks.items():
            read_label = read_array if path.endswith(".npy") else read_mask
            if key in photos:
                items.append(Item(photos[key], partial(read_label, table, path), split_of(path)))
            else:
                left_out[path] = "a mask without a photo"
        left_out |= {photo: "a photo without a mask" for key, photo in photos.items() if key not in masks}
    return Export(
        table.classes,
        items,
        [
            f"classes: {table_path}, by line",
            f"background: {table.classes[0]}",
            "overlaps: as labelme2voc drew them",
            f"void: 255, which stands for __ignore__; classes: {tables.void_names(entries, table)}",
        ],
        left_out,
        has_mask_values=True,
    )


def _by_name(source: Source, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    return {
        nfc(stem(path).removeprefix(f"{folder}/")): path
        for path in source.under(folder)
        if path.lower().endswith(suffixes)
    }


def read_array(table: Table, path: str, source: Source, size: tuple[int, int]) -> Label:  # noqa: ARG001
    """Return the label of a .npy file of int32, whose -1 is void."""
    try:
        data = source.read(path)
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: a damaged array ({error}); export it again") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu":
        raise DatasetError(f"{path}: expected an array of (height, width) whole numbers")
    if values.size > MAX_PIXELS:
        raise DatasetError(f"{path}: {values.size} pixels, more than {MAX_PIXELS}")
    label = np.full(values.shape, UNKNOWN, np.uint8)
    unknown = {}
    for value in np.unique(values).tolist():
        meaning = table.values.get(value, IGNORE_LABEL if value in VOID_VALUES else None)
        if meaning is None:
            unknown[str(value)] = int((values == value).sum())
        else:
            label[values == value] = meaning
    return Label(label, unknown)
