"""docs/own-data.md from end to end: its example, made from real photos, and the whole pipeline run on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.read import open_shards
from tests.conftest import ROOT
from tests.project_copy import Project
from tests.test_docs import blocks

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "own-data.md").read_text("utf-8")


@pytest.fixture(scope="module")
def project(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project that has run the guide's example with few iterations."""
    folder = tmp_path_factory.mktemp("own") / "project"
    folder.mkdir()
    project = Project(folder)
    example = blocks(GUIDE, "python")[0]
    environment = os.environ | {"VOC": str(real_data / "voc")}
    subprocess.run([sys.executable, "-c", example], cwd=folder, env=environment, check=True)
    profile = project.profile("own")
    for net in profile["nets"].values():
        net["iterations"] = 6
    project.use_profile("own", profile)
    project.log = project.run("dvc", "repro")
    return project


def test_the_shards_hold_the_images_of_the_lists_with_their_masks_values(project: Project):
    mine = project.folder.parent / "my-data"
    for split, count in (("train", 24), ("val", 12)):
        shards = open_shards(project.folder / "data" / "own" / "shards" / split)
        assert sorted(shards.keys) == sorted((mine / "splits" / f"{split}.txt").read_text().split())
        assert len(shards) == count
        pixels = np.zeros(256, np.int64)
        for key in shards.keys:
            pixels += np.bincount(np.array(Image.open(mine / "masks" / f"{key}.png")).ravel(), minlength=256)
        assert np.sum(shards.table["class_pixels"].to_pylist(), axis=0).tolist() == pixels[:3].tolist()
        assert sum(shards.table["void_pixels"].to_pylist()) == pixels[255]


def test_every_net_is_scored_on_the_validation_list_for_the_named_classes(project: Project):
    for net in ("fcn32s", "fcn16s", "fcn8s"):
        scores = json.loads((project.folder / "metrics" / "own" / f"{net}.json").read_text("utf-8"))
        assert scores["num_images"] == 12
        assert list(scores["class_iu"]) == ["background", "cat", "dog"]
        assert 0 < scores["pixel_acc"] <= 1


def test_nothing_is_done_twice(project: Project):
    assert project.will_run() == []


def test_dvc_keeps_a_users_own_folder_that_lies_among_the_results(project: Project):
    """DVC empties a stage's outs before it runs, and would take the user's only copy with them."""
    raw = project.folder / "data" / "own" / "raw"
    before = sorted(path for path in raw.rglob("*") if path.is_file())
    assert len(before) == 2 * (24 + 12) + 4  # lists, classes.txt and names.csv
    profile = project.profile("own")
    profile["data"]["source"]["own"] = "data/own/raw/own"
    project.use_profile("own", profile)
    output = project.run("dvc", "repro", "download", fails=True)
    assert "data.source.own: data/own/raw/own lies in data/own" in output
    assert sorted(path for path in raw.rglob("*") if path.is_file()) == before
