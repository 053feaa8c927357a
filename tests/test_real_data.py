"""The whole pipeline on photos of PASCAL VOC, brought into the published archives' layout."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from webdataset import WebDataset

from pipeline.datasets import sbd, voc
from pipeline.shards.read import open_shards
from tests.project_copy import Project

pytestmark = pytest.mark.slow

STEPS = {"fcn32s": 40, "fcn16s": 10, "fcn8s": 10}


def published_layout(real_data: Path, folder: Path) -> Path:
    """VOCdevkit/VOC2012 with the full official lists, benchmark_RELEASE with .mat labels: as archives unpack."""
    lists = voc.root(folder) / "ImageSets" / "Segmentation"
    shutil.copytree(real_data / "voc", voc.root(folder))
    assert {path.stem for path in lists.iterdir()} >= {"train", "val", "seg11valid"}
    boundaries = sbd.root(folder)
    shutil.copytree(real_data / "sbd" / "img", boundaries / "img")
    (boundaries / "cls").mkdir()
    for png in (real_data / "sbd" / "cls_png").iterdir():
        label = np.array(Image.open(png))
        savemat(
            boundaries / "cls" / f"{png.stem}.mat", {"GTcls": {"Segmentation": label}}, do_compression=True
        )
    # SBD's own lists are not at hand; sds_val shares 1103 ids with VOC's val, which the split must leave out
    (boundaries / "train.txt").write_text((real_data / "sbd" / "lists" / "train_aug.txt").read_text())
    (boundaries / "val.txt").write_text((real_data / "sbd" / "lists" / "sds_val.txt").read_text())
    return folder


@pytest.fixture(scope="module")
def project(real_data, tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    folder = published_layout(real_data, tmp_path_factory.mktemp("published") / "data")
    profile = project.profile("local")
    profile["data"]["source"]["local"] = str(folder)
    profile["data"]["splits"]["val"]["include"] = ["voc2012/seg11valid"]
    for net, iterations in STEPS.items():
        profile["nets"][net]["iterations"] = iterations
    project.use_profile("photos", profile)
    project.log = project.run("dvc", "repro")
    return project


def ids(real_data: Path, name: str) -> set[str]:
    return set((real_data / "here" / f"{name}.txt").read_text().split())


@pytest.mark.parametrize(
    ("split", "expected", "count"), [("train", "train_aug", 523), ("val", "seg11valid", 242)]
)
def test_the_shards_hold_just_the_ids_of_the_split(project, real_data, split, expected, count):
    shards = open_shards(project.folder / "data" / "photos" / "shards" / split)
    assert len(shards) == count
    assert set(shards.keys) == ids(real_data, expected)


def test_what_is_missing_of_the_published_lists_is_said(project):
    assert "voc2012/seg11valid: 242 of 736 listed images are there" in project.log
    assert "523 of 10582 listed images are there" in project.log


def test_webdataset_reads_the_pixels_of_the_original_files(project, real_data):
    folder = project.folder / "data" / "photos" / "shards" / "val"
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    seen = 0
    for sample in WebDataset(urls, shardshuffle=False):
        key = sample["__key__"]
        assert sample["jpg"] == (real_data / "voc" / "JPEGImages" / f"{key}.jpg").read_bytes()
        original = np.array(Image.open(real_data / "voc" / "SegmentationClass" / f"{key}.png"))
        label = Image.open(io.BytesIO(sample["png"]))
        assert label.mode == "P"
        assert np.array_equal(np.array(label), original)
        seen += 1
    assert seen == 242


def test_the_manifests_class_counts_are_those_of_the_label_files(project, real_data):
    table = open_shards(project.folder / "data" / "photos" / "shards" / "val").table
    counts = np.zeros(256, np.int64)
    for key in ids(real_data, "seg11valid"):
        label = np.array(Image.open(real_data / "voc" / "SegmentationClass" / f"{key}.png"))
        counts += np.bincount(label.ravel(), minlength=256)
    assert np.sum(table["class_pixels"].to_pylist(), axis=0).tolist() == counts[:21].tolist()
    assert sum(table["void_pixels"].to_pylist()) == counts[255]


def test_the_chain_learns_and_is_scored_on_every_image(project):
    folder = project.folder / "metrics" / "photos"
    scores = {net: json.loads((folder / f"{net}.json").read_text("utf-8")) for net in STEPS}
    assert all(values["num_images"] == 242 and len(values["class_iu"]) == 21 for values in scores.values())
    # From random weights a few steps learn background (70% of the pixels) and hardly more; chance is 1/21
    assert scores["fcn8s"]["pixel_acc"] > 0.6
    curve = (project.folder / "runs" / "photos").glob("fcn32s-*/curves.jsonl")
    losses = [json.loads(line)[2]["loss"] for line in next(curve).read_text("utf-8").splitlines()]
    assert losses[-1] < losses[0]
