"""COCO instances (polygons and run lengths) and COCO panoptic, one JSON file a split."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.importing import shapes
from pipeline.importing.export import (
    SPLITS,
    UNKNOWN,
    Export,
    Item,
    Label,
    Options,
    drawn_size,
    split_of,
)
from pipeline.importing.formats import json_files
from pipeline.importing.formats.drawn import classes_of
from pipeline.importing.masks import decode_mask
from pipeline.importing.source import Outline, Source, is_photo, nfc

SIGN = "JSON with images, annotations and categories (COCO)"
PANOPTIC_SIGN = "JSON with annotations that have segments_info, and its PNGs (COCO panoptic)"
KEYS = {"images", "annotations"}
Planned = tuple[str, str, dict[str, Any], list[dict[str, Any]]]  # JSON file, photo, its image and annotations
_TOKEN = re.compile(r"(?:^|[_.-])(train|valid|validation|val|test)(?:20\d\d)?(?=$|[_.-])", re.IGNORECASE)


def matches(source: Source) -> str | None:
    return next((path for path, outline in json_files.outlines(source) if _is_instances(outline)), None)


def matches_panoptic(source: Source) -> str | None:
    return next((path for path, outline in json_files.outlines(source) if _is_panoptic(outline)), None)


def _is_instances(outline: Outline) -> bool:
    """Return whether a file is COCO's, without annotations or with segmentations; captions have none."""
    return outline.keys >= KEYS and (not outline.first or "segmentation" in outline.first)


def _is_panoptic(outline: Outline) -> bool:
    return outline.keys >= KEYS and "segments_info" in outline.first


def read(source: Source, options: Options) -> Export:
    return _read(source, options, is_panoptic=False)


def read_panoptic(source: Source, options: Options) -> Export:
    return _read(source, options, is_panoptic=True)


def _read(source: Source, options: Options, *, is_panoptic: bool) -> Export:
    names: dict[int, str] = {}
    planned: list[Planned] = []
    is_kind = _is_panoptic if is_panoptic else _is_instances
    for path in [path for path in json_files.paths(source) if is_kind(source.outline(path))]:
        content = source.json(path)
        for identity, name in _categories(content, path).items():
            if names.setdefault(identity, name) != name:
                raise DatasetError(
                    f"{path}: category {identity} is {name!r} here and {names[identity]!r} elsewhere"
                )
        planned += [(path, *rest) for rest in _images(source, path, content)]
    used_ids = _used_ids(planned, names, is_panoptic)
    names, repeats = _without_repeats(names, used_ids)
    _refuse_repeated([(photo, path) for path, photo, _, _ in planned])
    classes = classes_of(
        [name for _, name in sorted(names.items())],
        options.class_map,
        source.name,
        add_background=not is_panoptic,
    )
    values = {identity: classes.values[name] for identity, name in names.items()}
    make = _panoptic if is_panoptic else _instances
    masks = _pngs(source) if is_panoptic else {}
    items = [
        Item(
            photo,
            partial(make, path, image, annotations, values, _png(path, image, annotations, masks)),
            _split(path, photo),
        )
        for path, photo, image, annotations in planned
    ]
    used = {photo for _, photo, _, _ in planned}.union(*masks.values())
    left_out = {
        path: "a photo that no COCO file names"
        for path in source.files
        if is_photo(path) and path not in used
    }
    num_crowds = sum(bool(entry.get("iscrowd")) for _, _, _, entries in planned for entry in entries)
    rules = [
        "overlaps: the larger area first, so that smaller objects stay visible",
        f"background: {classes.names[0]}, every pixel without an object",
        "photos without annotations are all background",
        f"void: the {num_crowds} objects with iscrowd 1; supervision writes it for every object of several parts: "
        "write 0 there to keep them",
        classes.void,
        *repeats,
    ]
    panoptic_rules = [
        "overlaps: none, as drawn in the PNGs",
        "background: none is added",
        "void: id 0 and crowds",
        classes.void,
        *repeats,
    ]
    return Export(classes.names, items, panoptic_rules if is_panoptic else rules, left_out)


def _used_ids(planned: Sequence[Planned], names: Mapping[int, str], is_panoptic: bool) -> set[int]:
    """Return the ids of the categories that have annotations; refuse one that is not among the categories."""
    used = set()
    for path, _, image, annotations in planned:
        for annotation in annotations:
            for segment in _segments(annotation, path, is_panoptic):
                identity = segment.get("category_id")
                if type(identity) is not int or identity not in names:
                    raise DatasetError(
                        f"{path}: image {image['id']}: category {identity!r} is not among the categories; export it "
                        "again"
                    )
                used.add(identity)
    return used


def _without_repeats(names: Mapping[int, str], used: set[int]) -> tuple[dict[int, str], list[str]]:
    """Leave out categories without annotations whose name another one has, as the group that Roboflow gives id 0.

    Returns the names by id, and a sentence about each category that is left out.
    """
    kept, sentences = dict(names), []
    for identity, name in sorted(names.items()):
        if identity not in used and list(kept.values()).count(name) > 1:
            del kept[identity]
            sentences.append(
                f"category {identity} without annotations has the name {name} of another: left out"
            )
    return kept, sentences


def _refuse_repeated(photos: Sequence[tuple[str, str]]) -> None:
    """Refuse a photo that is annotated twice.

    photos: each with its JSON file.
    """
    first: dict[str, str] = {}
    for photo, path in photos:
        if photo in first:
            where = f"twice in {path}" if first[photo] == path else f"in {first[photo]} and in {path}"
            raise DatasetError(
                f"{photo}: annotated {where}; keep one annotation of each photo: beside instances_*.json, move "
                "person_keypoints_*.json elsewhere"
            )
        first[photo] = path


def _segments(annotation: dict[str, Any], path: str, is_panoptic: bool) -> list[dict[str, Any]]:
    segments = annotation.get("segments_info") if is_panoptic else [annotation]
    if not isinstance(segments, list) or not all(
        isinstance(segment, dict) and (not is_panoptic or type(segment.get("id")) is int)
        for segment in segments
    ):
        raise DatasetError(f"{path}: segments_info is not a list of segments with ids; export it again")
    return segments


def _categories(content: dict[str, Any], path: str) -> dict[int, str]:
    found = content.get("categories")
    if not isinstance(found, list) or not found:
        raise DatasetError(f"{path}: has no categories; export it again with them")
    names: dict[int, str] = {}
    for category in found:
        identity = category.get("id") if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if type(identity) is not int or not isinstance(name, str) or not name.strip():
            raise DatasetError(f"{path}: category {str(category)[:60]}; expected a whole id and a name")
        if identity in names:
            raise DatasetError(f"{path}: category {identity} occurs twice; export it again")
        names[identity] = name.strip()
    return names


def _images(
    source: Source, path: str, content: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    if not isinstance(content["images"], list) or not isinstance(content["annotations"], list):
        raise DatasetError(f"{path}: images and annotations are not lists; export it again")
    seen: set[Any] = set()
    for annotation in content["annotations"]:
        identity = annotation.get("id") if isinstance(annotation, dict) else None
        if (
            not isinstance(annotation, dict)
            or not isinstance(annotation.get("image_id"), int | str)
            or not isinstance(identity, int | str | None)
        ):
            raise DatasetError(
                f"{path}: annotation {str(annotation)[:60]} has no id or image_id; export it again"
            )
        if identity is not None and identity in seen:
            raise DatasetError(f"{path}: annotation {identity} occurs twice; export it again")
        seen.add(identity)
        by_image[annotation["image_id"]].append(annotation)
    images: set[Any] = set()
    for image in content["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
            raise DatasetError(f"{path}: image {str(image)[:60]} has no id or file_name; export it again")
        identity = image["id"]
        if not isinstance(identity, int | str) or identity in images:
            raise DatasetError(f"{path}: image {identity} occurs twice; export it again")
        images.add(identity)
        photo = _photo(source, path, image["file_name"])
        if photo is None:
            raise DatasetError(
                f"{path}: photo {image['file_name']!r} is not there; put the photos into the export"
            )
        yield photo, image, by_image.get(identity, [])
    strangers = [identity for identity in by_image if identity not in images]
    if strangers:
        raise DatasetError(
            f"{path}: annotations of image {strangers[0]}, which is not among the images; export it again"
        )


def _photo(source: Source, path: str, name: str) -> str | None:
    """Return the path of a photo; of photos of one name, that in the folder of the JSON file's split.

    datumaro keeps the photos of annotations/instances_SPLIT.json in images/SPLIT/, COCO itself in SPLIT/.
    """
    folder, split = posixpath.dirname(path), posixpath.splitext(path)[0].rpartition("_")[2]
    near = (posixpath.join(folder, "..", part, split, name) for part in ("images", ""))
    return next(filter(None, map(source.find, near)), None) or source.photo(name, folder, path)


def _split(path: str, photo: str) -> tuple[str, ...]:
    """Return the split that a folder or the name of the JSON file states: instances_train2017.json -> train."""
    matches = list(_TOKEN.finditer(posixpath.splitext(posixpath.basename(path))[0]))
    named = (SPLITS[matches[-1][1].lower()],) if matches else ()
    is_last = bool(matches) and matches[-1].end() == len(matches[-1].string)
    return (named if is_last else ()) or split_of(path) or named or split_of(photo)


def _size(image: dict[str, Any], photo_size: tuple[int, int], path: str) -> tuple[int, int]:
    height, width = image.get("height") or photo_size[0], image.get("width") or photo_size[1]
    return drawn_size(height, width, photo_size, f"{path}: image {image['id']}")


def _instances(
    path: str,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    values: Mapping[int, int],
    _mask: str,
    _source: Source,
    photo_size: tuple[int, int],
) -> Label:
    size = _size(image, photo_size, path)
    label = np.zeros(size, np.uint8)
    drawn = []
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotation {annotation.get('id', number)}"
        piece = draw(annotation.get("segmentation"), size, where)
        drawn.append((-int(piece.pixels.sum()), number, piece))
    crowds = [entry for entry in drawn if annotations[entry[1]].get("iscrowd")]
    objects = [entry for entry in drawn if not annotations[entry[1]].get("iscrowd")]
    for _area, number, piece in [*sorted(crowds, key=lambda e: e[:2]), *sorted(objects, key=lambda e: e[:2])]:
        annotation = annotations[number]
        piece.paint(label, IGNORE_LABEL if annotation.get("iscrowd") else values[annotation["category_id"]])
    return Label(label)


def draw(segmentation: Any, size: tuple[int, int], where: str) -> shapes.Piece:
    """Return the pixels of polygons or run lengths, as pycocotools does."""
    if isinstance(segmentation, dict):
        return shapes.coco_rle(segmentation.get("counts"), segmentation.get("size"), size, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise DatasetError(f"{where}: has a box and no segmentation; export polygons or masks")
    return shapes.union([shapes.coco_polygon(polygon, size, where) for polygon in segmentation])


def _pngs(source: Source) -> dict[str, list[str]]:
    result: dict[str, list[str]] = defaultdict(list)
    for path in source.files:
        if path.lower().endswith(".png"):
            result[posixpath.basename(nfc(path))].append(path)
    return dict(result)


def _png(
    path: str, image: dict[str, Any], annotations: list[dict[str, Any]], masks: Mapping[str, list[str]]
) -> str:
    """Return the PNG of a photo's segments, "" if it has none; of several, that in the JSON file's folder."""
    if not masks or not annotations:
        return ""
    if len(annotations) > 1:
        raise DatasetError(f"{path}: image {image['id']} has {len(annotations)} annotations; expected one")
    name = nfc(posixpath.basename(str(annotations[0].get("file_name"))))
    where = posixpath.splitext(posixpath.basename(path))[0]
    found = masks.get(name, [])
    found = found if len(found) == 1 else [mask for mask in found if f"/{where}/" in f"/{mask}"]
    if len(found) != 1:
        raise DatasetError(f"{path}: the PNG {name} of image {image['id']} is not there, or not once")
    return found[0]


def _panoptic(
    path: str,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    values: Mapping[int, int],
    mask: str,
    source: Source,
    photo_size: tuple[int, int],
) -> Label:
    _size(image, photo_size, path)
    if not annotations:
        return Label(np.full(photo_size, IGNORE_LABEL, np.uint8))
    annotation = annotations[0]
    colours = decode_mask(source.read(mask), mask).values
    if colours.ndim != 3:
        raise DatasetError(f"{mask}: expected an RGB PNG of segment ids")
    wide = colours.astype(np.int64)
    ids = wide[:, :, 0] + 256 * wide[:, :, 1] + 65536 * wide[:, :, 2]
    meaning = {0: IGNORE_LABEL}
    for segment in annotation["segments_info"]:
        if segment.get("id") in meaning:
            raise DatasetError(f"{path}: segment {segment.get('id')} of image {image['id']} occurs twice")
        meaning[segment.get("id")] = (
            IGNORE_LABEL if segment.get("iscrowd") else values[segment["category_id"]]
        )
    present = np.unique(ids)
    strange = [value for value in present.tolist() if value not in meaning]
    if strange:
        raise DatasetError(f"{mask}: segment {strange[0]} is not in segments_info of {path}; export it again")
    table = np.array([meaning.get(value, UNKNOWN) for value in present.tolist()], np.uint8)
    return Label(table[np.searchsorted(present, ids)])
