"""pipeline/inspection/describe.py: a split's counts against what was put into it, and against the files of real photos."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.inspection.describe import as_markdown, as_metrics, inspect
from pipeline.report.plots import draw_inspection
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
    found = inspect(shards)
    assert found["num_images"] == 3
    assert found["classes"] == {
        "background": {"num_pixels": 84, "share": 84 / 132, "num_images": 3},
        "cat": {"num_pixels": 48, "share": 48 / 132, "num_images": 2},
        "dog": {"num_pixels": 0, "share": 0.0, "num_images": 0},
    }
    assert found["void"] == {"num_pixels": 12, "share": 12 / 144, "num_images": 1}
    assert found["modes"] == {"CMYK": 1, "L": 1, "RGB": 1}
    assert found["conversions"] == {"greyscale to RGB": 1, "CMYK to RGB": 1}
    assert found["sizes"] == [{"height": 6, "width": 8, "num_images": 3}]
    assert found["refused"] == []
    assert found["num_bytes"] == (shards.folder / "shard-000000.tar").stat().st_size


def test_sizes_are_counted_in_bins_that_hold_every_image(tmp_path: Path):
    sides = [(24, 25), (25, 50), (30, 49), (50, 500)]  # height, width
    samples = {}
    for number, (height, width) in enumerate(sides):
        label = np.zeros((height, width), np.uint8)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(label).save(path)
        samples[str(number)] = Sample.checked(str(number), path.read_bytes(), label)
    found = inspect(shards_of(tmp_path / "train", {}, samples=samples))
    height, width = found["height"], found["width"]
    assert (height["min"], height["median"], height["max"]) == (24, 27.5, 50)
    assert height["histogram"] == {"edges": [0, 25, 50, 75], "num_images": [1, 2, 1]}
    assert (width["min"], width["median"], width["max"]) == (25, 49.5, 500)
    assert width["histogram"]["edges"][-2:] == [500, 525]
    assert sum(width["histogram"]["num_images"]) == 4
    assert found["num_sizes"] == 4


def test_images_that_had_to_be_refused_are_named_with_the_reason(shards: Shards):
    header = shards.header | {"refused": [["2007_000033", "damaged JPEG: truncated"]]}
    found = {"train": inspect(dataclasses.replace(shards, header=header))}
    assert "* 2007_000033: damaged JPEG: truncated" in as_markdown(found)
    assert as_metrics(found)["train/num_refused"] == 1


def test_the_page_and_the_metrics_say_what_the_json_says(shards: Shards):
    found = {"train": inspect(shards), "val": inspect(shards)}
    lines = as_markdown(found).splitlines()
    assert "| images | 3 | 3 |" in lines
    assert "| void, share of pixels | 8.33% | 8.33% |" in lines
    assert "| converted | 1 greyscale to RGB, 1 CMYK to RGB | 1 greyscale to RGB, 1 CMYK to RGB |" in lines
    assert "| classes in no image | dog | dog |" in lines
    assert "| cat | 2 | 36.36% | 2 | 36.36% |" in lines
    metrics = as_metrics(found)
    assert metrics["val/class_share/cat"] == 48 / 132
    assert metrics["val/class_images/cat"] == 2
    assert metrics["train/void_share"] == 12 / 144
    assert metrics["train/width/max"] == 8
    assert metrics["train/num_converted"] == 2


def test_the_figure_shows_both_splits_though_a_class_is_in_no_image(shards: Shards, tmp_path: Path):
    draw_inspection({"train": inspect(shards), "val": inspect(shards)}, tmp_path / "f" / "inspection.png")
    with Image.open(tmp_path / "f" / "inspection.png") as picture:
        picture.load()
        counted = {colour: count for count, colour in picture.convert("RGB").getcolors(2**24)}
    blue, orange = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)  # matplotlib's first two
    assert counted[blue] > 1000
    assert counted[orange] > 1000
    draw_inspection({"train": inspect(shards)}, tmp_path / "inspection.png")


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
    found = inspect(shards_of(tmp_path / "val", {}, samples=samples))
    assert found["void"]["num_pixels"] == void
    assert found["width"]["median"] == np.median([width for width, _ in sides])
    assert found["height"]["max"] == max(height for _, height in sides)
    assert found["num_sizes"] == len(set(sides))
