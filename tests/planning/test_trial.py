"""Trial steps of a tiny net on drawn photos."""

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.config import Profile
from pipeline.errors import DatasetError
from pipeline.planning import fingerprint, trial
from pipeline.shards.read import open_shards
from tests.conftest import ROOT
from tests.planning.conftest import CLASSES, label


@pytest.fixture
def profile() -> Profile:
    values = YAML(typ="safe", pure=True).load((ROOT / "profiles" / "own.yaml").read_text("utf-8"))
    values["model"] |= {"width": 1 / 64}
    values["train"] |= {"num_workers": 1, "class_weights": "inverse"}
    return Profile.model_validate(values)


@pytest.fixture
def shards(draw, tmp_path):
    data = fingerprint.read(draw([label(40, 48, 1, 2)] * 3))
    trial.write_photos(data.pairs, data.classes, tmp_path / "shards")
    return tmp_path / "shards"


def test_steps_of_each_net_are_timed_and_their_memory_is_known(profile, shards):
    trials = trial.measure(profile, ["fcn8s", "fcn32s"], shards, 1, float("inf"))
    assert trials is not None
    assert len(trials) == 2
    assert all(0 < measured.step_s < 60 and 1e7 < measured.memory < 1e10 for measured in trials)


def test_a_step_that_needs_more_memory_than_there_is_gives_none(profile, shards):
    assert trial.measure(profile, ["fcn8s"], shards, 1, 5e7) is None


def test_the_photos_of_a_trial_are_spread_over_the_list(draw, tmp_path):
    labels = [label(8, 8, 1, 2, *[1] * number) for number in range(40)]
    data = fingerprint.read(draw(labels))
    trial.write_photos(data.pairs, data.classes, tmp_path / "shards")
    opened = open_shards(tmp_path / "shards")
    assert len(opened) == trial.NUM_PHOTOS
    chosen = [labels[i * 40 // 32] for i in range(32)]
    assert opened.class_pixels.tolist() == [
        int(sum(np.sum(one == value) for one in chosen)) for value in range(3)
    ]
    assert list(opened.classes) == CLASSES


def test_a_damaged_photo_is_refused_by_its_name(draw, tmp_path):
    folder = draw([label(8, 8, 1, 2)] * 2)
    photo = folder / "images" / "train1.jpg"
    data = fingerprint.read(folder)
    photo.write_bytes(photo.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"train1\.jpg"):
        trial.write_photos(data.pairs, data.classes, tmp_path / "shards")
