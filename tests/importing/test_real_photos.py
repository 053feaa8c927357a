"""Photos of PASCAL VOC, turned into five formats, come back with their labels pixel for pixel."""

import base64
import csv
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.importing.classes import ClassMap
from pipeline.importing.write import Settings, import_data
from pipeline.shards.labels import voc_palette
from tests.conftest import ROOT
from tests.importing.conftest import encoded
from tests.project_copy import yaml

NAMES = yaml.load((ROOT / "profiles/voc.yaml").read_text("utf-8"))["data"]["classes"]
NUM = 24
Pairs = dict[Path, np.ndarray]


def cvat(folder: Path, pairs: Pairs) -> None:
    """Colours in the order of the names, which is not that of the values; void is a class of its own here."""
    lines = ["# label:color_rgb:parts:actions"]
    for name, value in sorted([*zip(NAMES, range(21), strict=True), ("void", 255)]):
        lines.append(f"{name}:{','.join(map(str, voc_palette()[value]))}::")
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n")
    for inner in ("ImageSets/Segmentation", "SegmentationClass", "JPEGImages"):
        (folder / inner).mkdir(parents=True)
    (folder / "ImageSets/Segmentation/default.txt").write_text("".join(f"{photo.stem}\n" for photo in pairs))
    for photo, label in pairs.items():
        shutil.copy(photo, folder / "JPEGImages")
        (folder / f"SegmentationClass/{photo.stem}.png").write_bytes(encoded(voc_palette()[label]))


def roboflow(folder: Path, pairs: Pairs) -> None:
    for number, (photo, label) in enumerate(pairs.items()):
        split = folder / ("train", "valid", "test")[number % 3]
        split.mkdir(exist_ok=True)
        lines = [f"{value}, {name}\n" for value, name in enumerate(NAMES)]
        (split / "_classes.csv").write_text("Pixel Value, Class\n" + "".join(lines))
        shutil.copy(photo, split)
        (split / f"{photo.stem}_mask.png").write_bytes(encoded(label))


def coco(folder: Path, pairs: Pairs) -> None:
    """Run lengths of each class and, as a crowd, of void."""
    images, annotations = [], []
    for number, (photo, label) in enumerate(pairs.items()):
        shutil.copy(photo, folder)
        images.append(
            {"id": number, "file_name": photo.name, "height": label.shape[0], "width": label.shape[1]}
        )
        for value in np.unique(label[label > 0]).tolist():
            flat = (label == value).T.ravel()
            edges = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *edges, flat.size]).tolist()
            counts = [0, *counts] if flat[0] else counts
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": value % 255 + 1,
                    "iscrowd": int(value == 255),
                }
                | {"segmentation": {"size": list(label.shape), "counts": counts}}
            )
    categories = [{"id": value + 1, "name": name} for value, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def supervisely(folder: Path, pairs: Pairs) -> None:
    """Bitmaps; void cannot be stated and becomes a class of that name."""
    classes = [{"title": name, "shape": "bitmap", "color": "#000000"} for name in (*NAMES[1:], "unsure")]
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    for inner in ("ds/img", "ds/ann"):
        (folder / inner).mkdir(parents=True)
    for photo, label in pairs.items():
        shutil.copy(photo, folder / "ds/img")
        objects = []
        for value in np.unique(label[label > 0]).tolist():
            ys, xs = np.nonzero(label == value)
            piece = (label == value)[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            data = base64.b64encode(zlib.compress(encoded(Image.fromarray(piece)))).decode()
            name = "unsure" if value == 255 else NAMES[value]
            bitmap = {"data": data, "origin": [int(xs.min()), int(ys.min())]}
            objects.append({"classTitle": name, "geometryType": "bitmap", "bitmap": bitmap})
        size = {"height": label.shape[0], "width": label.shape[1]}
        (folder / f"ds/ann/{photo.name}.json").write_text(json.dumps({"size": size, "objects": objects}))


def plain(folder: Path, pairs: Pairs) -> None:
    """VOC's own layout, and no class table."""
    for inner in ("JPEGImages", "SegmentationClass"):
        (folder / inner).mkdir()
    for photo, label in pairs.items():
        shutil.copy(photo, folder / "JPEGImages")
        image = Image.fromarray(label)
        image.putpalette(voc_palette().tobytes())
        (folder / f"SegmentationClass/{photo.stem}.png").write_bytes(encoded(image))


@pytest.mark.parametrize("make", [cvat, roboflow, coco, supervisely, plain])
def test_photos_of_voc_come_back_from_any_format(
    make: Callable[[Path, Pairs], None], real_data: Path, tmp_path: Path
):
    masks = sorted((real_data / "voc/SegmentationClass").glob("*.png"))[:NUM]
    pairs = {real_data / f"voc/JPEGImages/{mask.stem}.jpg": np.array(Image.open(mask)) for mask in masks}
    (tmp_path / "in").mkdir()
    make(tmp_path / "in", pairs)
    class_map = ClassMap.parse(["unsure=void"] if make is supervisely else [])
    result = import_data(tmp_path / "in", tmp_path / "out", Settings(class_map=class_map))
    with (tmp_path / "out/names.csv").open(newline="") as file:
        keys = {Path(row["source"]).name: row["key"] for row in csv.DictReader(file)}
    assert len(keys) == NUM
    for photo, label in pairs.items():
        found = np.array(Image.open(tmp_path / f"out/masks/{keys[photo.name]}.png"))
        if make is plain:  # values alone, those that occur
            used = sorted({value for one in pairs.values() for value in np.unique(one).tolist()} - {255})
            table = np.full(256, 255)
            table[: len(used)] = used
        else:
            table = np.full(256, 255)
            table[: len(result.classes)] = [NAMES.index(name) for name in result.classes]
        np.testing.assert_array_equal(table[found], label, err_msg=photo.name)
