"""labelme's JSON files, one a photo: shapes drawn as labelme draws them, later ones over earlier ones."""

import base64
import math
import posixpath
from functools import partial
from typing import Any

import numpy as np

from pipeline.errors import DatasetError
from pipeline.importing import shapes
from pipeline.importing.export import (
    Export,
    Item,
    Label,
    Options,
    drawn_size,
    split_of,
)
from pipeline.importing.formats import json_files
from pipeline.importing.formats.drawn import canonical, classes_of
from pipeline.importing.source import Source, is_photo

SIGN = "JSON files with shapes and imagePath (labelme)"
KEYS = {"shapes", "imagePath"}
LINE_WIDTH, POINT_RADIUS = 10, 5  # pixels, labelme's own


def matches(source: Source) -> str | None:
    return next((path for path, outline in json_files.outlines(source) if outline.keys >= KEYS), None)


def read(source: Source, options: Options) -> Export:
    labels: set[str] = set()
    planned: list[tuple[str, str, bool]] = []
    left_out: dict[str, str] = {}
    for path in json_files.paths(source):
        content = source.json(path)
        if not isinstance(content, dict) or not content.keys() >= KEYS:
            left_out[path] = "JSON of another kind"
            continue
        where, base = str(content["imagePath"]), posixpath.dirname(path)
        for number, shape in enumerate(_shapes(content, path)):
            labels.add(_name(shape, path, number))
        # A photo of that name elsewhere may be another one; that in the file is the one that was drawn on
        is_there = posixpath.normpath(posixpath.join(base, where.replace("\\", "/"))) in source
        photo = source.photo(where, base, path) if is_there or not content.get("imageData") else None
        if photo is None and not content.get("imageData"):
            raise DatasetError(
                f"{path}: its photo {where!r} is not there and not in the file; put it beside the JSON file"
            )
        planned.append((path, photo or path, photo is None))
    classes = classes_of(sorted(labels), options.class_map, source.name)
    items = [
        Item(
            photo,
            partial(_label, path, classes.values, is_embedded=is_embedded),
            split_of(path),
            is_upright=True,
            embedded=partial(_embedded, path) if is_embedded else None,
        )
        for path, photo, is_embedded in planned
    ]
    used = {photo for _, photo, _ in planned}
    left_out |= {
        path: "a photo without a JSON file" for path in source.files if is_photo(path) and path not in used
    }
    return Export(
        classes.names,
        items,
        [
            "overlaps: a later shape covers an earlier one, as in labelme",
            f"background: {classes.names[0]}, every pixel without a shape",
            "photos without a shape are all background; photos without a JSON file are left out",
            classes.void,
            f"lines are {LINE_WIDTH} pixels wide and points have a radius of {POINT_RADIUS}, as in labelme",
        ],
        left_out,
    )


def _shapes(content: dict[str, Any], path: str) -> list[dict[str, Any]]:
    found = content["shapes"]
    if not isinstance(found, list) or not all(isinstance(shape, dict) for shape in found):
        raise DatasetError(f"{path}: shapes is not a list of objects")
    return found


def _name(shape: dict[str, Any], path: str, number: int) -> str:
    name = shape.get("label")
    if not isinstance(name, str) or not name.strip():
        raise DatasetError(f"{path}: shape {number} has no label; name it in labelme")
    return canonical(name)


def _embedded(path: str, source: Source) -> bytes:
    source.forget()  # read in every process that draws it, and its sha256 recorded
    try:
        return base64.b64decode(source.json(path)["imageData"], validate=True)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: imageData is damaged ({error}); put the photo beside the file"
        ) from error


def _label(
    path: str, values: dict[str, int], source: Source, photo_size: tuple[int, int], *, is_embedded: bool
) -> Label:
    if not is_embedded:  # else `_embedded` has just read the file
        source.forget()
    content = source.json(path)
    height, width = (
        content.get(f"image{side}") or stated
        for side, stated in zip(("Height", "Width"), photo_size, strict=True)
    )
    size = drawn_size(height, width, photo_size, path)
    label = np.zeros(size, np.uint8)
    for number, shape in enumerate(_shapes(content, path)):
        _drawn(shape, size, f"{path}: shape {number}").paint(label, values[_name(shape, path, number)])
    return Label(label)


def _drawn(shape: dict[str, Any], size: tuple[int, int], where: str) -> shapes.Piece:
    kind = shape.get("shape_type") or "polygon"
    at_least = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "point": 1, "mask": 2}
    at_least["oriented_rectangle"] = 4
    if kind not in at_least:
        raise DatasetError(f"{where}: shape_type {kind!r}; expected one of {', '.join(at_least)}")
    points = shapes.points_of(shape.get("points"), where, at_least[kind])
    exact = {"rectangle": 2, "circle": 2, "line": 2, "point": 1, "mask": 2, "oriented_rectangle": 4}
    if len(points) != exact.get(kind, len(points)):
        raise DatasetError(f"{where}: a {kind} of {len(points)} points; expected {exact[kind]}")
    if kind == "circle":
        return shapes.circle(points[0], math.dist(*points), size, where)
    shapes.check_inside(points, size, where)
    if kind == "rectangle":
        return shapes.rectangle(points, size)
    if kind in ("line", "linestrip"):
        return shapes.line(points, LINE_WIDTH, size)
    if kind == "point":
        return shapes.circle(points[0], POINT_RADIUS, size, where)
    if kind == "mask":
        piece = shapes.bitmap(shape.get("mask"), where, is_packed=False)
        (x1, y1), (x2, y2) = [(int(x), int(y)) for x, y in points]
        if piece.shape != (y2 - y1 + 1, x2 - x1 + 1):
            raise DatasetError(
                f"{where}: a mask of {piece.shape} at a place of {(y2 - y1 + 1, x2 - x1 + 1)} (height, width)"
            )
        return shapes.placed(piece, x1, y1, size)
    return shapes.polygon(points, size)
