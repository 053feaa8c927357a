"""pipeline/experiments/trial.py: the scores of a trial from its files, and a trial that ended before."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.config import Profile
from pipeline.config.variant import Variant
from pipeline.curves import Point, append_point, write_curve
from pipeline.experiments.trial import Replay, Result, Trial
from tests.stage_runs import sample_profile


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """A chain of 400 and 100 steps."""
    profile = Profile.model_validate(sample_profile())
    variant = Variant("lr=1", "sweep", tmp_path / "trial")
    return Trial("sample", profile, tmp_path, variant, ("fcn32s", "fcn16s"), "val_mean_iu")


def test_scores_of_a_chain_come_at_their_share_of_all_steps(trial: Trial):
    assert trial.points() == []
    curve = trial.variant.folder / paths.curve("sample", "fcn32s")
    points = [Point(200, 0, {"loss": 1.0, "val_mean_iu": 0.1}), Point(300, 0, {"loss": 1.0})]
    write_curve(curve, "fcn32s", "backbone", [*points, Point(400, 0, {"val_mean_iu": 0.2})])
    running = trial.variant.folder / "runs" / "sample" / "fcn16s-abc"
    running.mkdir(parents=True)
    append_point(running / "curves.jsonl", 50, {"val_mean_iu": 0.3, "loss": 1.0})
    append_point(running / "curves.jsonl", 60, {"loss": 1.0})
    assert trial.points() == [(40.0, 0.1), (80.0, 0.2), (90.0, 0.3)]


def test_with_the_batch_rule_the_steps_are_fewer(trial: Trial):
    train = trial.profile.train
    train = train.model_copy(
        update={"batch_rule": True, "optimizer": train.optimizer.model_copy(update={"name": "sgd"})}
    )
    fewer = replace(trial, profile=trial.profile.model_copy(update={"train": train}))
    assert (trial.num_steps, fewer.num_steps) == ([400, 100], [50, 13])


def test_a_trial_that_ended_gives_its_scores_again_and_a_failed_or_damaged_one_starts_again(trial: Trial):
    folder = trial.variant.folder
    result = Result("stopped", [(50.0, 0.1), (100.0, 0.2)], 3.0)
    result.write(folder)
    read = Result.read(folder)
    assert read is not None
    assert (read.state, read.score) == ("stopped", 0.2)
    replay = trial.start()
    assert isinstance(replay, Replay)
    assert replay.next() == {"progress": 50.0, "val_mean_iu": 0.1}
    assert replay.next() == {"progress": 100.0, "val_mean_iu": 0.2, "ended": True, "done": True}
    replay.stop()
    other = replace(trial, asha={"first": 0.5, "keep": 2.0})
    assert other.ended() is None
    Result("stopped", [], 3.0, asha=other.asha).write(folder)
    assert (trial.ended(), other.ended()) == (None, Result.read(folder))
    Result("finished", [], 3.0, asha=other.asha).write(folder)
    assert trial.ended() == other.ended() == Result.read(folder)
    (folder / "trial.json").write_text("{")
    assert Result.read(folder) is None
    assert Result.read(folder / "none") is None
