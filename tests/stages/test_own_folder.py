"""A user's own folder as the source of truth: `dvc repro` uses it as it is now, and messages name its files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.read import open_shards
from tests.project_copy import Project

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_VAL = 4, 2


def save_mask(folder: Path, number: int, value: int) -> None:
    label = np.zeros((48, 48), np.uint8)
    label[:24] = value
    Image.fromarray(label).save(folder / "masks" / "cam 1" / f"{number}.left.png")


def make(folder: Path) -> None:
    """Six photos, of which the first is a PNG, and masks of two classes."""
    for name in ("images/cam 1", "masks/cam 1", "splits"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("background\nblob\n")
    random = np.random.default_rng(0)
    for number in range(NUM_TRAIN + NUM_VAL):
        photo = Image.fromarray(random.integers(0, 256, (48, 48, 3), np.uint8))
        photo.save(folder / "images" / "cam 1" / f"{number}.left.{'JPG' if number else 'png'}")
        save_mask(folder, number, 1)
    lines = [f"cam 1/{number}.left\r\n" for number in range(NUM_TRAIN + NUM_VAL)]
    (folder / "splits/train.txt").write_text("".join(lines[:NUM_TRAIN]), newline="")
    (folder / "splits/val.txt").write_text("".join(lines[NUM_TRAIN:]), newline="")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    make(tmp_path / "my-data")
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    profile = project.profile("own")
    profile["data"]["classes"] = ["background", "blob"]
    project.use_profile("own", profile)
    return project


def class_pixels(project: Project) -> list[int]:
    return open_shards(project.folder / "data/own/shards/train").class_pixels.tolist()


def test_what_the_user_mends_or_changes_is_used_by_the_next_repro(project: Project):
    mine = project.folder.parent / "my-data"
    mask = mine / "masks/cam 1/1.left.png"
    good = mask.read_bytes()
    Image.new("RGB", (48, 48), "red").save(mask)
    output = project.run("dvc", "repro", "inspect", fails=True)
    assert "../my-data/masks/cam 1/1.left.png: a label of mode RGB" in output
    assert "\nThen run `dvc repro`" in output
    assert "raw/own" not in output

    mask.write_bytes(good)  # mended, as the message says
    output = project.run("dvc", "repro", "inspect")
    assert class_pixels(project) == [NUM_TRAIN * 48 * 24] * 2

    output = project.run("dvc", "repro", "inspect")  # nothing to do
    for stage in ("download", "shard", "inspect"):
        assert f"Stage '{stage}' didn't change" in output

    save_mask(mine, 1, 255)  # changed after all stages have passed
    project.run("dvc", "repro", "inspect")
    assert class_pixels(project) == [NUM_TRAIN * 48 * 24, (NUM_TRAIN - 1) * 48 * 24]

    mine.rename(mine.with_name("elsewhere"))  # as on another machine: the copy stands alone
    output = project.run("dvc", "repro", "inspect")
    assert "no folder ../my-data here" in output
    assert "Stage 'download' didn't change" in output
    mine.with_name("elsewhere").rename(mine)

    for number in range(NUM_TRAIN):
        save_mask(mine, number, 255)
    output = project.run("dvc", "repro", "inspect", fails=True)
    for fact in ("class blob is in no training image", "50.0% of the pixels are 255", "`fcn import`"):
        assert fact in output
