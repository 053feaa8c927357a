"""Label Studio's JSON export: brush run lengths, polygons, rectangles and ellipses in percent of the photo."""

import math
from functools import partial
from typing import Any
from urllib.parse import unquote

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
from pipeline.importing.source import PHOTO_SUFFIXES, Outline, Source, is_photo

SIGN = "a JSON list of tasks with annotations and data (Label Studio, JSON)"
FAR = 1e9  # percent or degrees; NaN is not below it
KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
TOOLS = {
    kind.removesuffix("labels"): kind for kind in KINDS
}  # drawn beside a <Labels> tag, which has the label


def matches(source: Source) -> str | None:
    return next((path for path, outline in json_files.outlines(source) if _is_export(outline)), None)


def _is_export(outline: Outline) -> bool:
    return (
        outline.is_list and "data" in outline.first and bool({"annotations", "completions"} & outline.first)
    )


def read(source: Source, options: Options) -> Export:
    labels: set[str] = set()
    planned: list[tuple[str, str, Any, list[dict[str, Any]]]] = []
    others: set[str] = set()
    left_out: dict[str, str] = {}
    num_several = num_empty = 0
    for path in [path for path in json_files.paths(source) if _is_export(source.outline(path))]:
        content = source.json(path)
        seen: set[Any] = set()
        for task in content:
            identity = task.get("id") if isinstance(task, dict) else None
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                raise DatasetError(f"{path}: task {str(task)[:60]} has no data; export it again")
            if not isinstance(identity, int | str | None) or (identity is not None and identity in seen):
                raise DatasetError(
                    f"{path}: task {identity} occurs twice, or its id is not a number; export it again"
                )
            seen.add(identity)
            annotations = task.get("annotations") or task.get("completions") or []
            if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
                raise DatasetError(
                    f"{path}: task {identity}: its annotations are not a list; export it again"
                )
            valid = [one for one in annotations if not one.get("was_cancelled")]
            photo = _photo(source, task, path)
            if not valid:
                num_empty += 1
                left_out[photo] = "a task without an annotation"
                continue
            num_several += len(valid) > 1
            regions = valid[-1].get("result")
            if not isinstance(regions, list):
                raise DatasetError(f"{path}: task {identity}: its annotation has no result; export it again")
            drawn = []
            for region in _with_labels(regions):
                kind = region.get("type") if isinstance(region, dict) else None
                if isinstance(kind, str) and kind in KINDS:
                    labels |= set(_names(region, path, identity))
                    drawn.append(region)
                else:
                    others.add(str(kind))
            planned.append((path, photo, identity, drawn))
    classes = classes_of(sorted(labels), options.class_map, source.name)
    items = [
        Item(photo, partial(_label, path, identity, drawn, classes.values), split_of(photo))
        for path, photo, identity, drawn in planned
    ]
    used = {photo for _, photo, _, _ in planned} | left_out.keys()
    left_out |= {
        path: "a photo that no task names" for path in source.files if is_photo(path) and path not in used
    }
    decisions = [
        "overlaps: a later region covers an earlier one",
        f"background: {classes.names[0]}, every pixel without a region",
        f"tasks with an annotation without regions are all background; {num_empty} tasks without one are left out",
        classes.void,
        f"several annotations of one task: the last one ({num_several} tasks)",
    ]
    if others:
        decisions.append(f"left out: results of the kinds {', '.join(sorted(others))}")
    return Export(classes.names, items, decisions, left_out)


def _with_labels(regions: list[Any]) -> list[Any]:
    """Return the regions of an annotation; one drawn beside a <Labels> tag takes the label of the result of its id."""
    found = [
        region for region in regions if isinstance(region, dict) and isinstance(region.get("value"), dict)
    ]
    labels = {str(one.get("id")): one["value"].get("labels") for one in found if one.get("type") == "labels"}
    whole: list[Any] = []
    used: set[str] = set()
    for region in regions:
        kind = TOOLS.get(str(region.get("type"))) if isinstance(region, dict) else None
        if kind and isinstance(region.get("value"), dict) and (key := str(region.get("id"))) in labels:
            used.add(key)
            whole.append(region | {"type": kind, "value": region["value"] | {kind: labels[key]}})
        else:
            whole.append(region)
    return [
        region
        for region in whole
        if not (isinstance(region, dict) and region.get("type") == "labels" and str(region.get("id")) in used)
    ]


def _photo(source: Source, task: dict[str, Any], path: str) -> str:
    """Return the photo of a task: the value of its data that names one."""
    candidates = [
        value
        for value in task["data"].values()
        if isinstance(value, str)
        and value.split("?")[0 if "?d=" not in value else -1].lower().endswith(PHOTO_SUFFIXES)
    ]
    for value in candidates:
        reference = value.split("?d=")[-1]
        reference = reference.split("://", 1)[-1]
        for text in dict.fromkeys((reference, unquote(reference))):
            if photo := source.photo(text, "", path):
                return photo
    shown = candidates[0] if candidates else str(task["data"])[:80]
    raise DatasetError(
        f"{path}: task {task.get('id')}: its photo {shown!r} is not in the export, which holds no photos; put them "
        "beside the JSON file"
    )


def _names(region: dict[str, Any], path: str, task: Any) -> list[str]:
    value = region.get("value")
    names = value.get(region["type"]) if isinstance(value, dict) else None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name.strip() for name in names)
    ):
        raise DatasetError(f"{path}: task {task}: a region without a label; give it one or delete it")
    return [canonical(names[0])]


def _label(
    path: str,
    task: Any,
    regions: list[dict[str, Any]],
    values: dict[str, int],
    source: Source,  # noqa: ARG001
    photo_size: tuple[int, int],
) -> Label:
    if not regions:
        return Label(None)
    where = f"{path}: task {task}"
    sizes = {
        drawn_size(region.get("original_height"), region.get("original_width"), photo_size, where)
        for region in regions
    }
    if len(sizes) > 1:
        raise DatasetError(f"{where}: its regions are drawn on photos of different sizes; export it again")
    (size,) = sizes
    label = np.zeros(size, np.uint8)
    for region in regions:
        _drawn(region, size, where).paint(label, values[_names(region, path, task)[0]])
    return Label(label)


def _drawn(region: dict[str, Any], size: tuple[int, int], where: str) -> shapes.Piece:
    value, kind = region["value"], region["type"]
    if kind == "brushlabels":
        return shapes.label_studio_rle(value.get("rle"), size, where)
    height, width = size
    if kind == "polygonlabels":
        points = shapes.points_of(value.get("points"), where, 3)
        points = [(x * width / 100, y * height / 100) for x, y in points]
    else:
        keys = (
            ("x", "y", "width", "height") if kind == "rectanglelabels" else ("x", "y", "radiusX", "radiusY")
        )
        numbers = [value.get(key) for key in keys]
        turn = value.get("rotation") or 0
        if not all(isinstance(n, int | float) and abs(n) < FAR for n in (*numbers, turn)):
            raise DatasetError(f"{where}: a region without {', '.join(keys)}; export it again")
        x, y, across, down = (n * side / 100 for n, side in zip(numbers, (width, height) * 2, strict=True))
        if kind == "ellipselabels":
            points = shapes.ellipse_points(x, y, across, down, turn)
        else:
            cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            corners = ((0.0, 0.0), (across, 0.0), (across, down), (0.0, down))
            points = [(x + dx * cos - dy * sin, y + dx * sin + dy * cos) for dx, dy in corners]
    shapes.check_inside(points, size, where)
    return shapes.polygon(points, size)
