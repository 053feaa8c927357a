"""What a user sees of a mistake: one message that says what to do, exit code 2, no traceback, nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import synthetic, voc
from pipeline.shards.labels import encode_label
from tests.project_copy import yaml
from tests.stage_runs import run_stage, sample_profile, write_profile

NUM_VAL = 2


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A project's root with a small drawn data set, as after the download stage."""
    profile = sample_profile()
    profile["data"]["source"]["sample"] |= {"num_train": 2, "num_val": NUM_VAL, "image_size": 48}
    write_profile(tmp_path, profile)
    synthetic.draw(tmp_path / "data" / "small" / "raw", num_train=2, num_val=NUM_VAL, image_size=48, seed=1)
    return tmp_path


def edited(root: Path, *keys: str, value: object) -> None:
    profile = yaml.load((root / "profiles" / "small.yaml").read_text())
    section = profile
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    write_profile(root, profile)


def message_of(root: Path, *command: str) -> str:
    """Standard error of a stage that must refuse to go on."""
    done = run_stage(root, *command)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr[done.stderr.index("error: ") :]


def voc_file(root: Path, kind: str) -> Path:
    folder = voc.root(root / "data" / "small" / "raw")
    return (
        folder
        / {"image": "JPEGImages/voc_val_000001.jpg", "mask": "SegmentationClass/voc_val_000001.png"}[kind]
    )


def small_mask(root: Path) -> None:
    voc_file(root, "mask").write_bytes(encode_label(np.zeros((48, 40), np.uint8)))


def rgb_mask(root: Path) -> None:
    Image.new("RGB", (48, 48)).save(voc_file(root, "mask"))


def foreign_label(root: Path) -> None:
    voc_file(root, "mask").write_bytes(encode_label(np.full((48, 48), 17, np.uint8)))


def empty_list(root: Path) -> None:
    (voc.root(root / "data" / "small" / "raw") / "ImageSets" / "Segmentation" / "val.txt").write_text("")


def remove_images(root: Path) -> None:
    for path in voc_file(root, "image").parent.iterdir():
        path.unlink()


def remove_raw(root: Path) -> None:
    (root / "data" / "small" / "raw").rename(root / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (small_mask, ["voc voc_val_000001", "(48, 40)", "(48, 48)"]),
        (rgb_mask, ["voc_val_000001.png", "mode RGB", "palette"]),
        (foreign_label, ["voc_val_000001.png", "label values 17", "0..4 or 255"]),
        (
            lambda root: voc_file(root, "mask").unlink(),
            ["voc_val_000001.png is missing", "dvc repro -f download"],
        ),
        (
            lambda root: voc_file(root, "image").unlink(),
            ["voc_val_000001.jpg is missing", "dvc repro -f download"],
        ),
        (remove_images, ["JPEGImages", "is missing"]),
        (empty_list, ["val.txt lists no ids"]),
        (remove_raw, ["no data folder", "dvc repro -f download"]),
        (lambda root: edited(root, "data", "classes", value=["background", "disc"]), ["label values"]),
        (
            lambda root: edited(root, "data", "splits", "val", "include", value=["voc2012/tset"]),
            ["'tset'", "val"],
        ),
        (
            lambda root: edited(root, "data", "splits", "val", "count", value=3),
            ["expected 3 images, found 2"],
        ),
    ],
)
def test_an_unusable_data_set_stops_the_shard_stage(workplace: Path, damage: Callable[[Path], object], words):
    damage(workplace)
    message = message_of(workplace, "stages.shard")
    assert all(word in message for word in words), message
    assert not (workplace / "data" / "small" / "shards" / "val").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("nets", "fcn32s", "lr", "1e-1O"),
            ["profiles/small.yaml: nets.fcn32s.lr must be a number, got '1e-1O'"],
        ),
        (("train", "batchsize", 4), ["unknown key train.batchsize"]),
        (("model", "padding", "same"), ["model.padding", "'reference' or 'tight'", "'same'"]),
        (("train", "batch_size", 3), ["batch_size 3 must be a multiple of num_workers 2"]),
    ],
)
def test_a_mistake_in_a_profile_stops_every_stage_before_it_starts(workplace: Path, change, words):
    edited(workplace, *change[:-1], value=change[-1])
    for command in (["stages.download"], ["stages.train", "fcn32s"]):
        message = message_of(workplace, *command)
        assert all(word in message for word in words), message


def test_an_unknown_profile_is_refused_with_those_there_are(workplace: Path):
    (workplace / "params.yaml").write_text("profile: vco\n")
    assert "unknown profile 'vco'; known: small" in message_of(workplace, "stages.shard")


def test_a_stage_outside_the_project_says_where_to_run_it(tmp_path: Path):
    assert "params.yaml is missing" in message_of(tmp_path, "stages.report")


def test_training_without_shards_or_parent_names_the_stage_that_makes_them(workplace: Path):
    assert "models/small/backbone.pt is missing" in message_of(workplace, "stages.train", "fcn32s")
    assert "shards/val/manifest.parquet is missing" in message_of(workplace, "stages.evaluate", "fcn32s")


def test_an_unknown_backbone_is_refused_with_those_there_are(workplace: Path):
    edited(workplace, "model", "backbone", value="vgg61")
    assert "unknown backbone 'vgg61'; known: alexnet, caffenet" in message_of(workplace, "stages.backbone")


@pytest.mark.parametrize(
    ("folder", "words"),
    [("nowhere", ["no folder or archive", "data.source.local"]), ("empty", ["holds nothing", "VOCdevkit"])],
)
def test_a_local_folder_without_the_data_set_is_refused(workplace: Path, folder: str, words):
    (workplace / "empty").mkdir()
    edited(workplace, "data", "source", value={"local": str(workplace / folder)})
    message = message_of(workplace, "stages.download")
    assert all(word in message for word in words), message
