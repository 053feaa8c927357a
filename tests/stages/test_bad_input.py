"""A user's mistake ends a stage with one message, exit code 2, no traceback and nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import voc
from pipeline.shards.labels import encode_label
from tests.stage_runs import edit_profile, run_stage


def message_of(root: Path, *command: str) -> str:
    """Return the message of a stage that must refuse to go on."""
    done = run_stage(root, *command)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr[done.stderr.index("error: ") :]


def val(root: Path) -> tuple[Path, Path]:
    """Return the photo and mask of a validation image."""
    return voc.LAYOUT.files(voc.root(root / "data" / "small" / "raw"), "voc_val_000001")


def empty_list(root: Path) -> None:
    (voc.root(root / "data" / "small" / "raw") / voc.LAYOUT.lists / "val.txt").write_text("")


def edit(*keys: str, value: object) -> Callable[[Path], object]:
    return lambda root: edit_profile(root, *keys, value=value)


DAMAGE: dict[
    str, tuple[Callable[[Path], object], list[str]]
] = {  # by name: the damage, and facts of the message
    "mask size": (
        lambda root: val(root)[1].write_bytes(encode_label(np.zeros((48, 40), np.uint8))),
        ["voc_val_000001.png", "(48, 40)", "(48, 48)"],
    ),
    "no photo": (lambda root: val(root)[0].unlink(), ["voc_val_000001.jpg", "dvc repro -f download"]),
    "empty list": (empty_list, ["val.txt"]),
    "no data set": (lambda root: shutil.rmtree(root / "data" / "small" / "raw"), ["dvc repro -f download"]),
    "too few classes": (edit("data", "classes", value=["background", "disc"]), ["0..1 or 255"]),
    "unknown list": (edit("data", "splits", "val", "include", value=["voc2012/tset"]), ["'tset'", "val"]),
    "count": (edit("data", "splits", "val", "count", value=3), ["data.splits", "3", "2"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_unusable_data_set_stops_the_shard_stage(workplace: Path, name: str):
    damage, facts = DAMAGE[name]
    damage(workplace)
    message = message_of(workplace, "stages.shard")
    assert all(fact in message for fact in facts), message
    assert not (workplace / "data" / "small" / "shards" / "val").exists()


def test_a_mistake_in_a_profile_stops_every_stage_before_it_starts(workplace: Path):
    edit_profile(workplace, "nets", "fcn32s", "lr", value="1e-1O")
    for command in (["stages.download"], ["stages.train", "fcn32s"]):
        message = message_of(workplace, *command)
        for fact in ("profiles/small.yaml", "nets.fcn32s.lr", "'1e-1O'"):
            assert fact in message


def test_an_unknown_profile_is_refused_with_those_there_are(workplace: Path):
    (workplace / "params.yaml").write_text("profile: vco\n")
    message = message_of(workplace, "stages.shard")
    assert "'vco'" in message
    assert "small" in message


def test_a_stage_outside_the_project_names_the_missing_file(tmp_path: Path):
    assert "params.yaml" in message_of(tmp_path, "stages.report")


def test_training_without_shards_or_parent_names_the_missing_file(workplace: Path):
    assert "models/small/backbone.pt" in message_of(workplace, "stages.train", "fcn32s")
    assert "shards/val/manifest.parquet" in message_of(workplace, "stages.evaluate", "fcn32s")


def test_an_unknown_backbone_is_refused_with_those_there_are(workplace: Path):
    edit_profile(workplace, "model", "backbone", value="vgg61")
    message = message_of(workplace, "stages.backbone")
    assert "'vgg61'" in message
    assert "vgg16" in message


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_local_folder_without_the_data_set_is_refused(workplace: Path, folder: str):
    (workplace / "empty").mkdir()
    edit_profile(workplace, "data", "source", value={"local": str(workplace / folder)})
    message = message_of(workplace, "stages.download")
    for fact in ("data.source.local", str(workplace / folder), "VOCdevkit"):
        assert fact in message
