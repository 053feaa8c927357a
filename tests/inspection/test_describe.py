"""The counts of a split against the images that were put into it, and against the files of real photos."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.inspection.describe import as_metrics, as_tables, describe, refuse_missing_classes
from pipeline.shards.read import Shards
from pipeline.shards.sample import Sample
from tests.drawn_shards import photo, shards_of


def sample(key: str, mode: str, label: np.ndarray) -> Sample:
    return Sample.checked(key, photo(int(key), mode), label)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Three images of 6x8: one of background alone, two half of cat, of these one with 12 pixels of void."""
    half = np.zeros((6, 8), np.uint8)
    half[:3] = 1
    bordered = half.copy()
    bordered[3:, :4] = 255
    samples = {
        "1": sample("1", "RGB", np.zeros((6, 8), np.uint8)),
        "2": sample("2", "L", half),
        "3": sample("3", "CMYK", bordered),
    }
    return shards_of(tmp_path / "train", {}, samples=samples)


def test_classes_void_and_conversions_are_counted(shards: Shards):
    counts = describe(shards)
    assert counts["num_images"] == 3
    assert counts["classes"] == {
        "background": {"num_pixels": 84, "share": 84 / 132, "num_images": 3},
        "cat": {"num_pixels": 48, "share": 48 / 132, "num_images": 2},
        "dog": {"num_pixels": 0, "share": 0.0, "num_images": 0},
    }
    assert counts["void"] == {"num_pixels": 12, "share": 12 / 144, "num_images": 1}
    assert counts["modes"] == {"CMYK": 1, "L": 1, "RGB": 1}
    assert counts["conversions"] == {"greyscale to RGB": 1, "CMYK to RGB": 1}
    assert counts["sizes"] == [{"height": 6, "width": 8, "num_images": 3}]
    assert counts["refused"] == []
    assert counts["num_bytes"] == (shards.folder / "shard-000000.tar").stat().st_size


def test_sizes_are_counted_in_bins_that_hold_every_image(tmp_path: Path):
    sides = [(24, 25), (25, 50), (30, 49), (50, 500)]  # height, width
    samples = {}
    for number, (height, width) in enumerate(sides):
        label = np.zeros((height, width), np.uint8)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(label).save(path)
        samples[str(number)] = Sample.checked(str(number), path.read_bytes(), label)
    counts = describe(shards_of(tmp_path / "train", {}, samples=samples))
    height, width = counts["height"], counts["width"]
    assert (height["min"], height["median"], height["max"]) == (24, 27.5, 50)
    assert height["histogram"] == {"edges": [0, 25, 50, 75], "num_images": [1, 2, 1]}
    assert (width["min"], width["median"], width["max"]) == (25, 49.5, 500)
    assert width["histogram"]["edges"][-2:] == [500, 525]
    assert sum(width["histogram"]["num_images"]) == 4
    assert counts["num_sizes"] == 4


def test_the_tables_and_the_metrics_hold_the_counts_of_the_json(shards: Shards):
    refused = dataclasses.replace(shards, header=shards.header | {"refused": [["2007_000033", "truncated"]]})
    splits = {"train": describe(shards), "val": describe(refused)}
    totals, classes, refusals = as_tables(splits)
    assert totals.head == ["", "train", "val"]
    cells = {row[0]: list(row[1:]) for row in totals.rows}
    assert cells["images"] == [3, 3]
    assert cells["void, share of pixels"] == ["8.33%", "8.33%"]
    assert cells["converted"] == ["1 greyscale to RGB, 1 CMYK to RGB"] * 2
    assert cells["classes in no image"] == ["dog", "dog"]
    assert cells["refused"] == [0, 1]
    assert ["cat", 2, "36.36%", 2, "36.36%"] in classes.rows
    assert list(refusals.rows) == [["2007_000033", "truncated"]]
    metrics = as_metrics(splits)
    assert metrics["val/class_share/cat"] == 48 / 132
    assert metrics["val/class_images/cat"] == 2
    assert metrics["val/num_refused"] == 1
    assert metrics["train/void_share"] == 12 / 144
    assert metrics["train/width/max"] == 8
    assert metrics["train/num_converted"] == 2


def test_the_counts_of_real_photos_are_those_of_their_files(real_data: Path, tmp_path: Path):
    folder = real_data / "voc"
    keys = (real_data / "here" / "voc12_val.txt").read_text().split()[:20]
    samples, sides, void = {}, [], 0
    for key in keys:
        with Image.open(folder / "SegmentationClass" / f"{key}.png") as mask:
            label = np.array(mask)
        label[label > 2] = np.where(label[label > 2] == 255, 255, 0)  # three classes here
        samples[key] = Sample.checked(key, (folder / "JPEGImages" / f"{key}.jpg").read_bytes(), label)
        with Image.open(folder / "JPEGImages" / f"{key}.jpg") as image:
            sides.append(image.size)
        void += int((label == 255).sum())
    counts = describe(shards_of(tmp_path / "val", {}, samples=samples))
    assert counts["void"]["num_pixels"] == void
    assert counts["width"]["median"] == np.median([width for width, _ in sides])
    assert counts["height"]["max"] == max(height for _, height in sides)
    assert counts["num_sizes"] == len(set(sides))


def shown(folder: Path, *values: int) -> Shards:
    """One image of 6x8 for each value, which fills the lower half of its label; the upper half is background."""
    samples = {}
    for number, value in enumerate(values):
        label = np.zeros((6, 8), np.uint8)
        label[3:] = value
        samples[str(number)] = sample(str(number), "RGB", label)
    return shards_of(folder, {}, samples=samples)


@pytest.mark.parametrize(
    ("values", "facts", "absent"),
    [
        ((255, 255), ["classes cat, dog are", "50.0% of the pixels are 255", "`fcn import`", "write 1"], []),
        ((1, 255), ["class dog is", "25.0%", "if 255 means dog", "write 2"], ["cat"]),
        ((1, 0), ["class dog is", "data.classes", "`dvc repro`"], ["cat", "255"]),
    ],
)
def test_a_class_without_a_training_pixel_is_refused_with_the_share_of_void(
    tmp_path: Path, values: tuple[int, ...], facts: list[str], absent: list[str], capsys
):
    train = shown(tmp_path / "train", *values)
    with pytest.raises(DatasetError) as caught:
        refuse_missing_classes(train, allow_partial=False)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert not any(fact in str(caught.value) for fact in absent), str(caught.value)
    refuse_missing_classes(train, allow_partial=True)
    assert facts[0] in capsys.readouterr().err


def test_a_training_split_that_shows_every_class_passes(tmp_path: Path):
    refuse_missing_classes(shown(tmp_path / "train", 1, 2, 255), allow_partial=False)
