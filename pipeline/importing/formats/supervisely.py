"""Supervisely: a project with meta.json, img/ and ann/; and its export as masks."""

import posixpath
from functools import partial
from typing import Any

import numpy as np

from pipeline.errors import DatasetError
from pipeline.importing import shapes, tables
from pipeline.importing.classes import BACKGROUND, BACKGROUND_NAMES
from pipeline.importing.export import Export, Item, Label, Options, drawn_size, split_of
from pipeline.importing.formats import json_files
from pipeline.importing.formats.drawn import canonical, classes_of
from pipeline.importing.masks import read_mask
from pipeline.importing.source import Source, is_photo, nfc, stem
from pipeline.importing.tables import Entry, make_table

SIGN = "meta.json with classes, and ann/*.json (Supervisely)"
COLOURS = "obj_class_to_machine_color.json"


def matches(source: Source) -> str | None:
    if source.named(COLOURS):
        return source.named(COLOURS)[0]
    metas = _metas(source)
    folders = {posixpath.dirname(path) for path in json_files.paths(source)}
    has_annotations = any(posixpath.basename(folder) == "ann" for folder in folders)
    return metas[0] if metas and has_annotations else None


def _metas(source: Source) -> list[str]:
    """Return the files called meta.json that hold Supervisely's classes; other tools use the name, too."""
    found = []
    for path in source.named("meta.json"):
        try:
            content = source.json(path)
        except DatasetError:
            continue
        classes = content.get("classes") if isinstance(content, dict) else None
        if isinstance(classes, list) and all(isinstance(entry, dict) for entry in classes):
            found.append(path)
    return found


def _classes(source: Source, path: str) -> list[str]:
    titles = [entry.get("title") for entry in source.json(path)["classes"]]
    if not all(isinstance(title, str) and title.strip() for title in titles):
        raise DatasetError(f"{path}: a class without a title; export it again")
    return [str(title).strip() for title in titles]


def read(source: Source, options: Options) -> Export:
    return _read_masks(source, options) if source.named(COLOURS) else _read_project(source, options)


def _read_masks(source: Source, options: Options) -> Export:
    tables.check_equal(source, source.named(COLOURS))
    path = source.named(COLOURS)[0]
    content = source.json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected classes with their colours")
    entries = [Entry(BACKGROUND, (0, 0, 0))]
    for name, colour in content.items():
        if (
            not isinstance(colour, list)
            or len(colour) != 3
            or not all(type(n) is int and 0 <= n < 256 for n in colour)
        ):
            raise DatasetError(f"{path}: {name!r}: expected three numbers from 0 to 255")
        if name.casefold() not in BACKGROUND_NAMES:
            entries.append(Entry(name, (colour[0], colour[1], colour[2])))
    table = make_table(entries, options.class_map, path)
    masks: dict[tuple[str, str], str] = {}
    photos: dict[tuple[str, str], str] = {}
    for name in source.files:
        folder, kind = posixpath.split(posixpath.dirname(name))
        group = masks if kind == "masks_machine" else photos if kind in ("img", "images") else None
        if group is not None and is_photo(name):
            group[nfc(folder), posixpath.basename(stem(nfc(name)))] = name
    items = []
    left_out = {}
    for (folder, base), photo in photos.items():
        mask = masks.pop((folder, base), None) or masks.pop((folder, posixpath.basename(nfc(photo))), None)
        if mask is None:
            left_out[photo] = "a photo without a mask"
        else:
            items.append(Item(photo, partial(read_mask, table, mask), split_of(photo)))
    left_out |= dict.fromkeys(masks.values(), "a mask without a photo")
    left_out |= {
        name: "photo and overlay side by side, not a label"
        for name in source.files
        if "masks_human/" in f"/{name}"
    }
    decisions = [
        f"classes: {path}, by colour",
        "background: 0, which is unlabelled",
        "overlaps: as drawn",
        f"void: {tables.void_names(entries, table)}",
    ]
    return Export(table.classes, items, decisions, left_out, has_mask_values=True)


def _read_project(source: Source, options: Options) -> Export:
    metas = _metas(source)
    meta = metas[0]
    for other in metas[1:]:
        if _classes(source, other) != _classes(source, meta):
            raise DatasetError(f"{other} and {meta} have different classes; import one project at a time")
    titles = _classes(source, meta)
    classes = classes_of([canonical(title) for title in titles], options.class_map, meta)
    values = {title: classes.values[canonical(title)] for title in titles}
    annotations = _annotations(source)
    items = []
    left_out = {}
    for photo in source.files:
        folder, kind = posixpath.split(posixpath.dirname(nfc(photo)))
        if kind != "img" or not is_photo(photo):
            continue
        path = annotations.pop((folder, f"{posixpath.basename(nfc(photo))}.json"), None)
        if path is None:
            left_out[photo] = "a photo without a file in ann/"
        else:
            items.append(Item(photo, partial(_label, path, values), split_of(photo)))
    left_out |= dict.fromkeys(annotations.values(), "an annotation without a photo")
    decisions = [
        f"classes: {meta}",
        "overlaps: a later object covers an earlier one",
        f"background: {classes.names[0]}, every pixel without an object",
        "photos without an object are all background; photos without a file in ann/ are left out",
        classes.void,
    ]
    return Export(classes.names, items, decisions, left_out)


def _annotations(source: Source) -> dict[tuple[str, str], str]:
    """Return the paths of ann/*.json by the folder that holds ann/, and the name; both in one Unicode form."""
    found = {}
    for path in json_files.paths(source):
        folder, kind = posixpath.split(posixpath.dirname(nfc(path)))
        if kind == "ann":
            found[folder, posixpath.basename(nfc(path))] = path
    return found


def _label(path: str, values: dict[str, int], source: Source, photo_size: tuple[int, int]) -> Label:
    content = source.json(path)
    objects = content.get("objects") if isinstance(content, dict) else None
    stated = content.get("size") if isinstance(content, dict) else None
    if not isinstance(objects, list) or not isinstance(stated, dict):
        raise DatasetError(f"{path}: has no size or objects; export it again")
    size = drawn_size(stated.get("height"), stated.get("width"), photo_size, path)
    label = np.zeros(size, np.uint8)
    for number, thing in enumerate(objects):
        where = f"{path}: object {number}"
        title = thing.get("classTitle") if isinstance(thing, dict) else None
        if str(title).strip() not in values:
            raise DatasetError(f"{where}: class {title!r} is not in meta.json; export the project again")
        _drawn(thing, size, where).paint(label, values[str(title).strip()])
    return Label(label)


def _drawn(thing: dict[str, Any], size: tuple[int, int], where: str) -> shapes.Piece:
    kind = thing.get("geometryType")
    if kind == "bitmap":
        held = thing.get("bitmap")
        if not isinstance(held, dict):
            raise DatasetError(f"{where}: a bitmap without data; export it again")
        piece = shapes.bitmap(held.get("data"), where, is_packed=True)
        ((x, y),) = shapes.points_of([held.get("origin")], where, 1)
        shapes.check_inside([(x, y), (x + piece.shape[1], y + piece.shape[0])], size, where)
        return shapes.placed(piece, int(x), int(y), size)
    points = thing.get("points")
    if kind not in ("polygon", "rectangle", "line") or not isinstance(points, dict):
        raise DatasetError(
            f"{where}: geometryType {kind!r}; expected bitmap, polygon, rectangle or line. Delete it, or convert it to "
            "a mask"
        )
    outline = shapes.points_of(points.get("exterior"), where, 3 if kind == "polygon" else 2)
    shapes.check_inside(outline, size, where)
    if kind == "rectangle":
        return shapes.rectangle(outline[:2], size)
    if kind == "line":
        return shapes.line(outline, 1, size)
    holes = points.get("interior") or []
    if not isinstance(holes, list):
        raise DatasetError(f"{where}: its interior is not a list; export it again")
    return shapes.polygon(outline, size, [shapes.points_of(hole, where, 3) for hole in holes])
