"""pipeline/experiments/sweep.py: sweeps of a tiny net with real Ray, MLflow and stages."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from pipeline import config, paths
from pipeline.cluster import connection
from pipeline.datasets import sbd, synthetic
from pipeline.errors import ConfigError, LeakError, UserError
from pipeline.experiments import sweep
from pipeline.experiments.sweep_plan import make_plan, make_trials
from pipeline.experiments.trial import Result
from pipeline.models import backbone, checkpoint
from pipeline.shards.read import open_shards
from pipeline.tracking import MEMBER, Tracker
from pipeline.training.driver import train_net
from stages import shard
from tests.project_copy import yaml
from tests.stage_runs import edit_profile, sample_profile, write_profile

pytestmark = pytest.mark.early

NAME = "small"
SWEEP = {
    "profile": NAME,
    "search": "grid",
    "fixed": {"data.tuning": 0.25, "train.num_workers": 1},
    "space": {"nets.fcn32s.lr": [1.0e-3, 1.0e30, 4.0e-3]},
}


def write_project(root: Path) -> Path:
    """As after the download stage: twelve drawings to train on, a net of eight steps with four scores."""
    drawing = {"num_train": 12, "num_val": 2, "image_size": 48}
    profile = sample_profile()
    profile["data"]["source"]["sample"] |= drawing
    profile["model"]["width"] = 1 / 64
    profile["train"]["batch_size"] = 2
    profile["run"] |= {"log_every": 1, "checkpoint_every": 2, "validate_every": 2}
    for net, iterations in (("fcn32s", 8), ("fcn16s", 4), ("fcn8s", 4)):
        profile["nets"][net]["iterations"] = iterations
    write_profile(root, profile)
    synthetic.draw(root / "data" / NAME / "raw", seed=1, **drawing)
    return root


def write_sweep(root: Path, name: str = "rates", **changes: Any) -> Path:
    path = root / f"{name}.yaml"
    with path.open("w") as file:
        yaml.dump(SWEEP | changes, file)
    return path


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with connection.session(2):
        yield


@pytest.fixture(scope="module")
def project(session, tmp_path_factory) -> Path:  # noqa: ARG001
    """A project in which the sweep has run."""
    root = write_project(tmp_path_factory.mktemp("project"))
    assert sweep.run_sweep(write_sweep(root), root) == root / "profiles" / "rates-best.yaml"
    return root


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(write_project(tmp_path))
    return tmp_path


def report(root: Path) -> dict[str, Any]:
    return json.loads((root / "runs" / NAME / "sweeps" / "rates" / "sweep.json").read_text("utf-8"))


def test_a_failed_trial_is_named_with_its_reason_and_the_rest_goes_on(project: Path):
    results = [trial["result"] for trial in report(project)["trials"]]
    assert [result["state"] for result in results] == ["finished", "failed", "finished"]
    assert "lr=1e+30" in results[1]["message"]
    assert "nets.fcn32s.lr" in results[1]["message"]
    scores = [[progress for progress, _ in result["points"]] for result in results]
    assert scores[0] == scores[2] == [25.0, 50.0, 75.0, 100.0]
    best = report(project)["best"]
    assert results[best]["points"][-1][1] == max(results[i]["points"][-1][1] for i in (0, 2))


@pytest.mark.slow
def test_the_winner_is_a_profile_that_trains_the_same_weights_bit_for_bit(project: Path, monkeypatch):
    text = (project / "profiles" / "rates-best.yaml").read_text("utf-8")
    found = report(project)
    lr = SWEEP["space"]["nets.fcn32s.lr"][found["best"]]
    assert text.startswith(f"# The winner of the sweep rates: lr={lr:g}\n")
    assert " 3 images of data.tuning" in text
    winner, before = config.read("rates-best", project), config.read(NAME, project)
    assert (winner.nets.fcn32s.lr, winner.data.tuning, winner.train.num_workers) == (lr, 0.25, 1)
    assert (winner.model, winner.run, winner.nets.fcn8s) == (before.model, before.run, before.nets.fcn8s)
    # As `dvc repro` would, with a worker of Ray Train in a process of its own
    monkeypatch.chdir(project)
    (project / "params.yaml").write_text("profile: rates-best\n")
    (project / "data" / "rates-best").mkdir()
    (project / "data" / "rates-best" / "raw").symlink_to(project / "data" / NAME / "raw")
    shard.main()
    backbone.write_random(
        project / "models/rates-best/backbone.pt", winner.model.arguments(), winner.backbone.seed
    )
    again, _ = checkpoint.load(train_net("rates-best", winner, "fcn32s", project), "model")
    (kept,) = (project / "runs" / NAME / "sweeps" / "rates").glob(f"*/models/{NAME}/fcn32s.pt")
    trial, _ = checkpoint.load(kept, "model")
    assert again["lineage"] == trial["lineage"]
    assert again["trained_on"] == trial["trained_on"]
    for name, weight in trial["state_dict"].items():
        assert torch.equal(again["state_dict"][name], weight), name


def test_trials_are_children_of_the_sweeps_run_in_mlflow_with_their_values_and_curves(project: Path):
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(f"fcn-{NAME}")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "sweep rates"]
    children = {
        run.data.params["variant.nets.fcn32s.lr"]: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert children.keys() == {"0.001", "1e+30", "0.004"}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert children["1e+30"].data.tags["trial"] == "failed"
    history = client.get_metric_history(children["0.001"].info.run_id, "val_mean_iu")
    points = report(project)["trials"][0]["result"]["points"]
    assert sorted((point.step / 8 * 100, point.value) for point in history) == [
        tuple(point) for point in points
    ]
    best = report(project)["trials"][report(project)["best"]]["result"]["points"][-1][1]
    assert parent.data.metrics["val_mean_iu"] == best
    assert parent.data.tags["winner_profile"] == "rates-best"


def test_no_trial_is_trained_or_scored_on_val(project: Path):
    (data,) = (project / "runs" / NAME / "sweeps" / "rates").glob(f"data-*/data/{NAME}/shards")
    splits = {split: set(open_shards(data / split).keys) for split in ("train", "tuning", "val")}
    assert [len(keys) for keys in splits.values()] == [9, 3, 2]
    assert len(set.union(*splits.values())) == 14
    assert not list((project / "runs" / NAME / "sweeps" / "rates").glob("*/metrics"))


@pytest.mark.slow
def test_the_same_command_again_runs_failed_trials_alone(project: Path, capfd):
    times = {path: path.stat().st_mtime_ns for path in project.glob("runs/small/sweeps/rates/*/curves/*/*")}
    assert len(times) == 2
    sweep.run_sweep(project / "rates.yaml", project)
    assert "1 of 3 trials to run" in capfd.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.slow
def test_a_trial_that_asha_stops_ends_its_training_before_its_checkpoints_go_and_keeps_its_curve(
    fresh: Path,
    session,  # noqa: ARG001
    capfd,
):
    edit_profile(fresh, "nets", "fcn32s", value={"lr": 1.0e-3, "iterations": 200})
    space = {"nets.fcn32s.lr": [1.0e-3, 2.0e-3]}
    path = write_sweep(fresh, space=space, asha={"first": 0.1, "keep": 2}, at_once=1)
    better = make_trials(make_plan(path, fresh))[1]
    Result("finished", [(float(percent), 0.9) for percent in range(1, 101)], 1.0).write(better.variant.folder)
    sweep.run_sweep(path, fresh)
    trials = report(fresh)["trials"]
    assert [trial["result"]["state"] for trial in trials] == ["stopped", "finished"]
    assert not list(fresh.glob(f"runs/{NAME}/sweeps/rates/*/runs"))
    assert "Traceback" not in "".join(capfd.readouterr())
    client = MlflowClient(f"sqlite:///{fresh / 'mlflow.db'}")
    (run,) = client.search_runs(
        [client.get_experiment_by_name(f"fcn-{NAME}").experiment_id], "tags.trial = 'stopped'"
    )
    assert run.info.status == "FINISHED"
    scored = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "val_mean_iu")}
    for progress, score in trials[0]["result"]["points"]:
        assert scored[round(progress * 2)] == score


@pytest.mark.slow
def test_a_chain_on_two_workers_is_a_trial_too_and_its_time_limit_ends_it_without_a_loss(
    fresh: Path,
    session,  # noqa: ARG001
):
    fixed = SWEEP["fixed"] | {"train.num_workers": 2}
    space = {"nets.fcn16s.lr": [1.0e-3, 2.0e-3]}
    path = write_sweep(fresh, net="fcn16s", fixed=fixed, space=space, hours=1 / 3600)
    with pytest.raises(UserError, match="hours"):
        sweep.run_sweep(path, fresh)
    path = write_sweep(fresh, net="fcn16s", fixed=fixed, space=space, hours=1.0)
    sweep.run_sweep(path, fresh)
    for trial in report(fresh)["trials"]:
        steps = [round(progress * 12 / 100) for progress, _ in trial["result"]["points"]]
        assert steps == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("fixed", "changes", "named"),
    [
        ({"train.num_workers": 1}, {}, ["data.tuning", "fixed"]),
        ({"data.tuning": 0.2, "run.validate_every": 0}, {}, ["validate_every", "val_mean_iu"]),
        ({"data.tuning": 0.2}, {"asha": {"first": 0.125}}, ["asha.first", "validate_every"]),
    ],
)
def test_a_sweep_whose_scores_would_not_come_is_refused(fresh: Path, fixed: dict, changes: dict, named: list):
    with pytest.raises(ConfigError) as error:
        sweep.run_sweep(write_sweep(fresh, fixed=fixed, **changes), fresh)
    assert all(text in str(error.value) for text in named), error.value
    assert not (fresh / "runs").exists()


def test_trials_that_would_be_compared_on_different_images_are_refused(fresh: Path):
    """A share of other training images leaves out other images."""
    lists = sbd.root(fresh / "data" / NAME / "raw")
    ids = (lists / "train.txt").read_text().split()
    (lists / "some.txt").write_text("\n".join(ids[:6]))
    (lists / "tune.txt").write_text("\n".join(ids[6:8]))
    space = {"data.splits.train.include": [["sbd/train"], ["sbd/some"]]}
    with pytest.raises(ConfigError, match=r"rates\.yaml.*sbd/some.*data\.tuning"):
        sweep.run_sweep(write_sweep(fresh, space=space), fresh)
    path = write_sweep(fresh, space=space, fixed=SWEEP["fixed"] | {"data.tuning": ["sbd/tune"]})
    trials = make_trials(make_plan(path, fresh))
    splits = [
        {split: open_shards(trial.variant.data / split).keys for split in ("train", "tuning")}
        for trial in trials
    ]
    assert [len(keys["train"]) for keys in splits] == [10, 6]
    assert set(splits[0]["tuning"]) == set(splits[1]["tuning"]) == set(ids[6:8])


def test_the_first_share_of_asha_is_one_of_all_steps_of_a_chain(fresh: Path):
    """Of 8 steps the first score comes after a quarter, of 8 and 4 and 4 after an eighth."""
    path = write_sweep(fresh, asha={"first": 0.2})
    with pytest.raises(ConfigError, match=r"asha\.first"):
        make_plan(path, fresh)
    assert len(make_plan(write_sweep(fresh, net="fcn8s", asha={"first": 0.2}), fresh).profiles) == 3


def test_a_trial_that_finishes_after_a_failure_is_no_failed_one_in_mlflow(fresh: Path):
    trial = make_trials(make_plan(write_sweep(fresh), fresh))[0]
    tracker = Tracker(NAME, fresh)
    member = trial.variant.member("fcn32s-ab")
    record = tracker.record(
        "training", "fcn32s lr=1", MEMBER, member, params={}, datasets={}, group=trial.variant.group
    )
    tracker.begin(record)
    sweep._close_runs(trial, Result("failed", [], 1.0, "NaN"), tracker, is_again=False)
    (run,) = tracker.search_runs("")
    assert (run.data.tags["trial"], run.data.tags["trial_failure"]) == ("failed", "NaN")
    tracker.log(record, {}, {"model_sha256": "ab"})
    sweep._close_runs(trial, Result("finished", [], 1.0), tracker, is_again=True)
    (run,) = tracker.search_runs("")
    assert (run.data.tags["trial"], run.data.tags["trial_failure"]) == ("finished", "")
    assert run.data.tags["model_sha256"] == "ab"


def test_scores_of_another_number_of_images_are_those_of_other_trials(fresh: Path):
    folders = {}
    for number in (None, 2, 3, 100):
        fixed = SWEEP["fixed"] | ({} if number is None else {"run.validate_images": number})
        trials = make_trials(make_plan(write_sweep(fresh, fixed=fixed), fresh))
        folders[number] = [trial.variant.folder for trial in trials]
    assert folders[None] == folders[3] == folders[100]  # all that there are
    assert not set(folders[None]) & set(folders[2])


def test_images_that_were_brought_again_make_other_shards(fresh: Path):
    record = fresh / paths.raw_record(NAME)
    plan = make_plan(write_sweep(fresh), fresh)
    data = set()
    for content in ("one", "one", "another"):
        record.write_text(json.dumps(content))
        data.add(make_trials(plan)[0].variant.data)
    assert len(data) == 2


def test_another_net_to_start_from_makes_other_trials(fresh: Path):
    path = write_sweep(fresh, fixed=SWEEP["fixed"] | {"train.start": "start.pt"})
    folders = []
    for content in (b"one", b"one", b"another"):
        (fresh / "start.pt").write_bytes(content)
        folders.append([trial.variant.folder for trial in make_trials(make_plan(path, fresh))])
    assert folders[0] == folders[1]
    assert not set(folders[0]) & set(folders[2])


@pytest.mark.parametrize("name", ["größe", "lr.2", "a b"])
def test_a_name_that_no_profile_can_have_is_refused_before_any_trial(fresh: Path, name: str):
    with pytest.raises(ConfigError, match=name):
        sweep.run_sweep(write_sweep(fresh, name), fresh)
    assert not (fresh / "runs").exists()


def test_a_profile_that_no_sweep_wrote_is_not_overwritten(fresh: Path):
    (fresh / "profiles" / "rates-best.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"rates-best\.yaml"):
        sweep.run_sweep(write_sweep(fresh), fresh)
    assert (fresh / "profiles" / "rates-best.yaml").read_text() == "mine"


def test_without_the_images_the_remedy_is_named(fresh: Path):
    (fresh / "data" / NAME / "raw").rename(fresh / "elsewhere")
    with pytest.raises(UserError, match="dvc repro download"):
        sweep.run_sweep(write_sweep(fresh), fresh)


def test_shards_that_were_written_before_the_profile_changed_are_refused(fresh: Path):
    """The profile leaves images out of train, but its shards are older: they would be trained on."""
    shard.main()
    whole = fresh / "data" / NAME / "shards" / "train"
    whole.rename(fresh / "whole")
    edit_profile(fresh, "data", "tuning", value=0.25)
    shard.main()
    (fresh / "data" / NAME / "shards" / "train").rename(fresh / "rest")
    (fresh / "whole").rename(whole)
    with pytest.raises(LeakError, match="3 images of tuning are trained on"):
        sweep.run_sweep(write_sweep(fresh, fixed={}), fresh)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_was_ended_goes_on(fresh: Path, end: signal.Signals):
    edit_profile(fresh, "nets", "fcn32s", value={"lr": 1.0e-3, "iterations": 400})
    space = {"nets.fcn32s.lr": [1.0e-3, 2.0e-3, 4.0e-3]}
    path = write_sweep(fresh, space=space)
    command = [sys.executable, "-m", "pipeline.cli.main", "sweep", path.name]
    with (fresh / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=fresh, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        while not list(fresh.glob("runs/small/sweeps/rates/*/trial.json")):
            assert process.poll() is None, (fresh / "log").read_text()
            time.sleep(0.1)
        time.sleep(3)
        os.kill(process.pid, end)
        process.wait(60)
    assert process.returncode == (-end if end == signal.SIGKILL else 130), (fresh / "log").read_text()
    assert "Traceback" not in (fresh / "log").read_text()
    done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout + done.stderr
    trials = report(fresh)["trials"]
    assert [trial["result"]["state"] for trial in trials] == ["finished"] * 3
    for trial in trials:
        assert len(trial["result"]["points"]) == 200
