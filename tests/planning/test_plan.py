"""The plan's choices for data sets and machines that are only described, against numbers worked out by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import config
from pipeline.config import CHAIN, Profile
from pipeline.planning import plan
from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.machine import Machine
from pipeline.planning.plan import Choice, Start
from pipeline.planning.profile import profile_text
from tests.conftest import ROOT

LAPTOP = Machine(num_cores=2, memory=16e9)
GPU = Machine(num_cores=16, memory=128e9, num_gpus=1, gpu_name="a GPU", gpu_memory=80 * 10**9)


def described(**changes: Any) -> Fingerprint:
    """523 photos as those of VOC."""
    standard = {
        "folder": Path("../my-data"),
        "classes": ["background", "cat", "dog"],
        "num_photos": {"train": 523, "val": 242},
        "median_size": (375, 500),
        "max_size": (500, 500),
        "num_sizes": 100,
        "pixels": np.array([7000, 2000, 1000]),
        "num_showing": np.array([523, 100, 50]),
        "num_void": 500,
        "pairs": [],
    }
    return Fingerprint(**standard | changes)


def start(template: str = "laptop") -> Start:
    return Start(
        template, config.read(template, ROOT), "the best there is", "" if template != "own" else "a lot"
    )


def planned(
    data: Fingerprint, machine: Machine = LAPTOP, template: str = "laptop", batch_size: int = 16
) -> Profile:
    choices = plan.make(data, machine, start(template), batch_size=batch_size, batch_reason="measured")
    return Profile.model_validate(plan.values(choices))


def test_the_photos_of_voc_get_about_the_profile_that_was_tuned_on_them():
    profile, tuned = planned(described(), batch_size=8), config.read("laptop", ROOT)
    assert (profile.model, profile.backbone) == (tuned.model, tuned.backbone)
    assert profile.train == tuned.train
    for net in CHAIN:
        assert profile.net(net).lr == tuned.net(net).lr
        assert profile.net(net).iterations == pytest.approx(tuned.net(net).iterations, rel=0.4)


@pytest.mark.parametrize(
    ("median", "largest", "sizes", "on_cpu", "on_gpu"),
    [
        ((128, 128), (128, 128), 1, None, None),  # one small size: whole
        ((128, 128), (200, 200), 2, 128, 128),
        ((20, 30), (30, 30), 9, 64, 64),
        ((375, 500), (500, 500), 99, 320, 320),  # 319
        ((375, 500), (375, 500), 1, 320, 320),  # one size, but large
        ((300, 300), (300, 300), 4, 256, 256),
        ((720, 1280), (720, 1280), 1, 384, 608),
        ((3000, 4000), (3000, 4000), 1, 384, 640),
    ],
)
def test_the_crop_follows_the_median_photo(median, largest, sizes, on_cpu, on_gpu):
    data = described(median_size=median, max_size=largest, num_sizes=sizes)
    for machine, side in ((LAPTOP, on_cpu), (GPU, on_gpu)):
        transforms = planned(data, machine).train.transforms
        assert transforms.crop == ((side, side) if side else None)
        assert transforms.scale == ((0.5, 1.5) if side else (1.0, 1.0))


@pytest.mark.parametrize("rarest", [1, 99, 100, 101])
def test_classes_are_weighted_by_the_inverse_root_where_the_rarest_has_less_than_a_hundredth(rarest):
    pixels = {"background": 9000, "cat": 1000 - rarest, "dog": rarest}
    weights = planned(described(pixels=np.array(list(pixels.values())))).train.class_weights
    if rarest >= 100:
        assert weights == "none"
        return
    assert isinstance(weights, dict)
    assert list(weights) == list(pixels)
    assert sum(weights[name] * number for name, number in pixels.items()) == pytest.approx(10_000, rel=5e-3)
    for name, number in pixels.items():
        assert weights[name] / weights["dog"] == pytest.approx(math.sqrt(rarest / number), rel=0.02)


def test_class_weights_are_written_for_classes_of_any_name():
    names = ["classes", "no", "a: b"]
    data = described(classes=names, pixels=np.array([9000, 950, 50]))
    choices = plan.make(data, LAPTOP, start(), batch_size=16)
    written = YAML(typ="safe", pure=True).load(profile_text(choices, {"": "words"}, data))
    assert list(written["train"]["class_weights"]) == names
    assert written["data"]["classes"] == names
    Profile.model_validate(written)


@pytest.mark.parametrize(
    ("num_train", "batch_size", "expected"),
    [
        (5, 4, [300, 100, 100]),  # the least
        (1600, 16, [1000, 300, 300]),  # 10 and 3 passes
        (10_582, 16, [math.ceil(10_582 * 10 / 160) * 10, 1990, 1990]),
        (10**6, 16, [20_000, 10_000, 10_000]),  # the most
    ],
)
def test_iterations_are_passes_over_the_photos_within_bounds(num_train, batch_size, expected):
    profile = planned(described(num_photos={"train": num_train, "val": 9}), batch_size=batch_size)
    assert [profile.net(net).iterations for net in CHAIN] == expected


def test_random_weights_take_more_passes():
    data = described(num_photos={"train": 1600, "val": 9})
    pretrained = planned(data, GPU, template="voc").nets.fcn32s.iterations
    assert planned(data, template="own").nets.fcn32s.iterations == 2 * pretrained


@pytest.mark.parametrize(
    ("template", "cores", "batch_size", "workers"),
    [
        *(("laptop", 1, 8, 1), ("laptop", 2, 8, 2), ("laptop", 64, 8, 2), ("laptop", 2, 4, 1)),
        *(("own", 2, 16, 2), ("own", 64, 16, 2), ("own", 2, 8, 1)),
    ],
)
def test_workers_keep_enough_photos_for_their_batch_norm(template, cores, batch_size, workers):
    train = planned(described(), Machine(cores, 8e9), template, batch_size).train
    assert (train.num_workers, train.batch_norm) == (workers, "frozen" if template == "laptop" else "local")


def test_random_batch_norm_is_never_frozen():
    assert planned(described(), template="own", batch_size=1).train.batch_norm == "local"


@pytest.mark.parametrize(("gpus", "workers"), [(1, 1), (3, 2), (8, 8)])
def test_gpus_get_a_worker_each_with_processes_that_decode(gpus, workers):
    profile = planned(described(), GPU._replace(num_gpus=gpus), "voc")
    assert (profile.train.use_gpu, profile.train.num_workers, profile.train.precision) == (
        True,
        workers,
        "auto",
    )
    assert profile.run.cpus_per_worker == 16 // workers
    assert 1 <= profile.run.loader_workers <= 8
    assert profile.evaluate.use_gpu


@pytest.mark.parametrize(("step_s", "every"), [(0.001, 1000), (1.0, 120), (4.0, 30), (100.0, 10)])
def test_checkpoints_are_two_minutes_apart_within_bounds(step_s, every):
    choices = plan.make(described(), LAPTOP, start(), batch_size=16)
    run = Profile.model_validate(plan.values(plan.with_step_time(choices, step_s))).run
    assert run.checkpoint_every == every
    assert run.log_every == min(20, every)


@pytest.mark.parametrize(("photos", "batch_size"), [(1, 1), (3, 2), (15, 8), (16, 16), (999, 16)])
def test_the_first_batch_has_no_photo_twice(photos, batch_size):
    data = described(num_photos={"train": photos, "val": 1})
    assert plan.first_batch(data, start("voc")) == batch_size


def test_every_choice_has_its_reason():
    choices = plan.make(described(), LAPTOP, start(), batch_size=16, batch_reason="measured")

    def leaves(part, path=()):
        if isinstance(part, Choice):
            return [(path, part.reason)]
        return [leaf for key, inner in part.items() for leaf in leaves(inner, (*path, key))]

    bare = {path for path, reason in leaves(choices) if not reason}
    # One reason stands for a group
    assert bare == {
        ("model", "dropout"),
        ("backbone", "weights", "file"),
        ("backbone", "weights", "checksum"),
        ("train", "transforms", "contrast"),
        ("train", "transforms", "saturation"),
    }


def test_a_template_with_batch_norm_for_gpus_is_planned_on_a_cpu():
    recipe = start()
    train = recipe.profile.train.model_copy(update={"batch_norm": "sync"})
    edited = recipe._replace(profile=recipe.profile.model_copy(update={"train": train}))
    choices = plan.make(described(), LAPTOP, edited, batch_size=16)
    planned_train = Profile.model_validate(plan.values(choices)).train
    assert (planned_train.batch_norm, planned_train.num_workers) == ("local", 2)


@pytest.mark.parametrize("shorter", [20, 100, 150, 210, 257, 280, 300, 375, 720, 3000])
def test_the_crop_is_the_share_of_the_photo_that_its_reason_states_and_never_larger(shorter):
    data = described(median_size=(shorter, 2 * shorter), max_size=(6000, 6000))
    crop = plan.make(data, LAPTOP, start(), batch_size=8)["train"]["transforms"]["crop"]
    assert f" {100 * crop.value[0] / shorter:.0f}% " in crop.reason
    assert crop.value[0] <= max(64, shorter)
