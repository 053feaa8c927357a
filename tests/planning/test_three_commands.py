"""The three commands of docs/own-data.md on every VOC photo at hand, from five formats: import, plan, train."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.importing.test_real_photos import NAMES, Pairs, coco, cvat, plain, roboflow, supervisely
from tests.project_copy import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FEW = 4  # steps of each net
OPTIONS = {"supervisely": ["--map", "unsure=void"]}


@pytest.fixture(scope="module")
def pairs(real_data: Path) -> Pairs:
    masks = sorted((real_data / "voc/SegmentationClass").glob("*.png"))
    return {real_data / f"voc/JPEGImages/{mask.stem}.jpg": np.array(Image.open(mask)) for mask in masks}


@pytest.mark.parametrize("make", [cvat, roboflow, coco, supervisely, plain])
def test_an_export_of_all_photos_becomes_three_scored_nets_in_three_commands(
    make, pairs: Pairs, tmp_path: Path
):
    (tmp_path / "export").mkdir()
    make(tmp_path / "export", pairs)
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    seconds = {}

    def timed(name: str, *command: str) -> str:
        start = time.perf_counter()
        output = project.run(*command)
        seconds[name] = round(time.perf_counter() - start)
        return output

    timed("import", "fcn", "import", "../export", "../mine", *OPTIONS.get(make.__name__, []))
    timed("init", "fcn", "init", "../mine", "mine")
    profile = project.profile("mine")
    for net in profile["nets"].values():
        net["iterations"] = FEW
    project.use_profile("mine", profile)
    timed("repro", "dvc", "repro")
    print(f"{make.__name__}: {len(pairs)} photos, seconds {seconds}")

    splits = {name: (tmp_path / f"mine/splits/{name}.txt").read_text().split() for name in ("train", "val")}
    num_imported = len(list((tmp_path / "mine/images").iterdir()))
    assert num_imported == len(pairs)
    assert not set(splits["train"]) & set(splits["val"])
    for net in ("fcn32s", "fcn16s", "fcn8s"):
        scores = project.json(f"metrics/mine/{net}.json")
        assert scores["num_images"] == len(splits["val"])
        assert len(scores["class_iu"]) == len(NAMES)
        assert 0 < scores["pixel_acc"] <= 1
    assert (project.folder / "reports/mine/index.html").exists()
