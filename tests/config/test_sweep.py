"""pipeline/config/sweep.py: the trials of a sweep, and the message for each kind of mistake."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import sweep
from pipeline.errors import ConfigError
from tests.conftest import ROOT
from tests.project_copy import yaml
from tests.stage_runs import sample_profile

SPACE = {"nets.fcn32s.lr": [1.0e-3, 2.0e-3], "train.batch_size": [4, 8, 16]}
RATE = {"low": 1.0e-4, "high": 1.0e-1, "log": True}
DELETED = object()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    with (tmp_path / "profiles" / "sample.yaml").open("w") as file:
        yaml.dump(sample_profile(), file)
    return tmp_path


def read(project: Path, **changes: Any) -> tuple[sweep.Sweep, list]:
    values = {"profile": "sample", "search": "grid", "fixed": {"data.tuning": 0.1}, "space": SPACE} | changes
    path = project / "mine.yaml"
    with path.open("w") as file:
        yaml.dump({key: value for key, value in values.items() if value is not DELETED}, file)
    return sweep.read(path, project)


def random(project: Path, num_trials: int, space: dict, **changes: Any) -> list[dict]:
    return read(project, search="random", num_trials=num_trials, space=space, **changes)[0].trials()


def test_a_grid_tries_every_combination_and_each_trial_has_its_profile(project: Path):
    settings, profiles = read(project)
    pairs = list(itertools.product(*SPACE.values()))
    assert [tuple(values.values()) for values in settings.trials()] == pairs
    assert [(profile.nets.fcn32s.lr, profile.train.batch_size) for profile in profiles] == pairs
    assert {profile.data.tuning for profile in profiles} == {0.1}
    assert {profile.nets.fcn16s.lr for profile in profiles} == {1.0e-3}


def test_random_trials_are_the_same_at_every_call_and_more_begin_with_the_same_ones(project: Path):
    space = {"nets.fcn32s.lr": RATE, "train.optimizer.name": ["adamw", "sgd"]}
    few, many = random(project, 5, space), random(project, 9, space)
    assert many[:5] == few == random(project, 5, space)
    assert random(project, 5, space, seed=1) != few


def test_ranges_are_drawn_evenly_in_themselves_or_in_their_logarithm_and_whole_numbers_with_both_ends(
    project: Path,
):
    space = {
        "nets.fcn32s.lr": RATE,
        "train.optimizer.weight_decay": {"low": 0.0, "high": 1.0},
        "nets.fcn32s.iterations": {"low": 3, "high": 5},
    }
    drawn = random(project, 600, space)
    rates = [math.log10(values["nets.fcn32s.lr"]) for values in drawn]
    decays = [values["train.optimizer.weight_decay"] for values in drawn]
    for values, low, high in ((rates, -4, -1), (decays, 0, 1)):
        assert min(values) >= low
        assert max(values) <= high
        below = sum(value < (low + high) / 2 for value in values)
        assert abs(below / 600 - 0.5) < 0.1  # 5 standard deviations
    counts = [sum(values["nets.fcn32s.iterations"] == number for values in drawn) for number in (3, 4, 5)]
    assert sum(counts) == 600
    assert min(counts) > 140


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"profile": "none"}, ["none", "sample"]),
        ({"profile": DELETED}, ["profile"]),
        ({"sapce": {}}, ["sapce", "space"]),
        ({"space": {}}, ["space"]),
        ({"space": {"nets.fcn32s.lrr": [1.0, 2.0]}}, ["nets.fcn32s.lrr", "lr"]),
        ({"space": {"nets.fcn32s.lr.x": [1.0, 2.0]}}, ["nets.fcn32s.lr"]),
        ({"space": {"nets.fcn32s.lr": [1.0e-3]}}, ["nets.fcn32s.lr", "fixed"]),
        ({"space": {"nets.fcn32s.lr": []}}, ["nets.fcn32s.lr", "[]"]),
        ({"space": {"nets.fcn32s.lr": [1.0, 1.0]}}, ["nets.fcn32s.lr", "differ"]),
        ({"space": {"nets.fcn32s.lr": [1.0e-3, -1.0]}}, ["lr=-1", "nets.fcn32s.lr", "greater than 0"]),
        ({"space": {"nets.fcn32s.lr": RATE}}, ["nets.fcn32s.lr", "grid"]),
        ({"space": {"nets.fcn32s.lr": 5}}, ["nets.fcn32s.lr", "5"]),
        ({"space": {"data.splits.val.include": [["a/b"], ["c/d"]]}}, ["data.splits.val", "final score"]),
        ({"space": {"data.splits": [{"val": 1}, {"val": 2}]}}, ["space.data.splits ", "data.splits.val"]),
        ({"space": {"data": [{"a": 1}, {"a": 2}]}}, ["space.data ", "same images"]),
        ({"space": {"data.tuning": [0.1, 0.2]}}, ["data.tuning", "same images"]),
        ({"space": {"evaluate.flip": [True, False]}}, ["evaluate.flip"]),
        ({"space": {"run.log_every": [1, 2]}}, ["run.log_every"]),
        ({"space": {"train.batch_size": [4, 7]}}, ["batch_size=7", "num_workers 2"]),
        ({"fixed": {"nets.fcn32s.lr": 1.0}}, ["nets.fcn32s.lr", "fixed", "space"]),
        ({"fixed": {"data.tuning": 0.9}}, ["data.tuning", "0.5", "0.9"]),
        ({"fixed": {"data.tuning": ["voc2012/val"]}}, ["tuning", "voc2012/val", "part of train"]),
        ({"num_trials": 4}, ["num_trials", "random"]),
        ({"search": "random"}, ["num_trials"]),
        ({"search": "random", "num_trials": 7}, ["num_trials", "7", "6"]),
        ({"search": "bayes"}, ["search", "bayes"]),
        ({"metric": "mean_iu"}, ["metric", "val_mean_iu"]),
        ({"net": "fcn4s"}, ["net", "fcn4s"]),
        ({"hours": 0}, ["hours", "0"]),
        ({"asha": {"first": 1.5}}, ["asha.first", "1.5"]),
    ],
)
def test_a_mistake_is_named_with_file_key_and_value_before_any_trial(
    project: Path, changes: dict, named: list
):
    with pytest.raises(ConfigError) as error:
        read(project, **changes)
    assert all(text in str(error.value) for text in named), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"low": 2.0, "high": 1.0}, ["below", "2.0"]),
        ({"low": 1.0, "high": 1.0}, ["below"]),
        ({"low": 0.0, "high": 1.0, "log": True}, ["log", "0.0"]),
        ({"low": 1.0}, ["high"]),
        ({"low": 1.0, "high": 2.0, "step": 1.0}, ["step"]),
    ],
)
def test_an_empty_range_is_refused(project: Path, bounds: dict, named: list):
    with pytest.raises(ConfigError) as error:
        random(project, 2, {"nets.fcn32s.lr": bounds})
    assert all(text in str(error.value) for text in ["nets.fcn32s.lr", *named]), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_that_is_shipped_can_be_read(path: Path):
    settings, profiles = sweep.read(path, ROOT)
    assert len(profiles) == len(settings.trials()) > 1
    assert all(profile.data.tuning for profile in profiles)


def test_a_trials_name_has_the_last_part_of_each_key_unless_two_are_the_same():
    assert sweep.describe({"nets.fcn32s.lr": 1.0e-3, "train.batch_size": 8}) == "lr=0.001, batch_size=8"
    names = sweep.describe({"nets.fcn32s.lr": 0.1, "nets.fcn16s.lr": 0.2})
    assert names == "nets.fcn32s.lr=0.1, nets.fcn16s.lr=0.2"


def test_a_range_with_more_digits_than_a_name_shows_is_not_left(project: Path):
    space = {"train.ema": {"low": 0.98765, "high": 0.99997}}
    drawn = [values["train.ema"] for values in random(project, 100, space)]
    assert 0.98765 <= min(drawn) < max(drawn) <= 0.99997  # four digits of it are 1, which no profile may have


def test_trials_of_values_that_differ_in_a_late_digit_have_names_of_their_own():
    assert sweep.describe({"lr": 0.12345678}) != sweep.describe({"lr": 0.12345679})
    assert sweep.describe({"lr": 1.0e-05, "weight_decay": 2.0}) == "lr=1e-05, weight_decay=2"


@pytest.mark.parametrize(
    "changes",
    [{"num_trials": 10**30}, {"space": {"train.seed": {"low": 1, "high": 10**400}}}],
)
def test_numbers_without_end_are_refused_and_not_drawn(project: Path, changes: dict):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        random(project, **{"num_trials": 3, "space": {"train.ema": {"low": 0.1, "high": 0.2}}} | changes)
