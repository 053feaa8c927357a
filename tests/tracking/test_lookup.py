"""Runs and models, found by id, name or net, whatever people have done to them in MLflow."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import ResultError
from pipeline.tracking import GROUP, MEMBER, Tracker, download_metrics, register, replay
from pipeline.tracking.models import find_model


def test_scores_are_found_by_id_and_by_the_newest_run_of_a_name(root, tmp_path_factory):
    tracker = Tracker("small", root)
    scores, images = root / "fcn8s.json", root / "fcn8s.parquet"
    for number in (1, 2):
        scores.write_text(f'{{"mean_iu": 0.{number}}}')
        images.write_text(f"images of {number}")
        record = tracker.record("evaluation", "nightly", "model_sha256", str(number), params={}, datasets={})
        tracker.log(record, {}, {}, [], [scores, images])
    oldest = tracker.search_runs("tags.model_sha256 = '1'")[0].info.run_id
    for run, number in ((oldest, 1), ("nightly", 2)):
        folder = tmp_path_factory.mktemp("download")
        path = download_metrics(run, root, folder)
        assert path.read_text() == f'{{"mean_iu": 0.{number}}}'
        assert path.with_suffix(".parquet").read_text() == f"images of {number}"


@pytest.mark.parametrize("name", ["it's", 'a "b"', 'it\'s "c"', "terms={'dice': 1.0}", "100%", "a\\b"])
def test_a_run_and_its_group_are_found_by_names_with_quotes(root, name, tmp_path_factory):
    tracker, scores = Tracker("small", root), root / "fcn8s.json"
    scores.write_text("{}")
    tracker.begin(tracker.record("group", "the group", GROUP, name, params={}, datasets={}))
    for run in ("another", name):
        record = tracker.record(
            "evaluation", run, MEMBER, f"{name}/{run}", params={}, datasets={}, group=name
        )
        tracker.log(record, {"mean_iu": 0.5}, {}, [], [scores])
        tracker.log(record, {"mean_iu": 0.6}, {}, [], [scores])
    assert download_metrics(name, root, tmp_path_factory.mktemp("download")).read_text() == "{}"
    runs = {run.info.run_name: run for run in tracker.search_runs("")}
    assert runs.keys() == {"the group", "another", name}
    assert runs[name].data.metrics == {"mean_iu": 0.6}
    assert runs[name].data.tags["mlflow.parentRunId"] == runs["the group"].info.run_id


@pytest.mark.parametrize("run", ["bare", "it's", "none"])
def test_a_run_that_is_missing_or_has_no_scores_is_refused_by_name(run, root):
    tracker = Tracker("small", root)
    tracker.open_run(tracker.record("evaluation", "bare", "model_sha256", "a", params={}, datasets={}))
    with pytest.raises(ResultError, match=run):
        download_metrics(run, root, root)


def test_runs_are_found_beside_more_experiments_than_one_page_has(root, tmp_path_factory):
    tracker, scores = Tracker("small", root), root / "fcn8s.json"
    scores.write_text("{}")
    record = tracker.record("evaluation", "nightly", "model_sha256", "1", params={}, datasets={})
    tracker.log(record, {}, {}, [], [scores])
    later = time.time_ns() // 1_000_000 + 1000
    with closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        columns = "name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace"
        connection.executemany(
            f"INSERT INTO experiments ({columns}) VALUES (?, 'x', 'active', ?, ?, 'default')",
            [(f"other {i}", later + i, later + i) for i in range(1001)],
        )
    tracker.log(record, {"mean_iu": 0.5}, {}, [], [scores])
    (run,) = Tracker("small", root).search_runs("")
    assert run.data.metrics == {"mean_iu": 0.5}
    assert download_metrics(run.info.run_id, root, tmp_path_factory.mktemp("own")).read_text() == "{}"
    assert download_metrics("nightly", root, tmp_path_factory.mktemp("any")).read_text() == "{}"


def test_without_runs_no_database_is_made(tmp_path):
    with pytest.raises(ResultError, match=str(tmp_path)):
        download_metrics("nightly", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


# --- what people do in MLflow's pages, and by its command


@pytest.fixture
def tracker(logged) -> Tracker:
    return Tracker("small", logged)


def way_back(message: str, capfd) -> None:
    """Run the command that a message names."""
    command = message[message.index("MLFLOW_TRACKING_URI=") :].splitlines()[0].partition("; ")[0]
    here = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, env=environment)
    capfd.readouterr()


def test_a_deleted_run_is_named_with_the_command_that_restores_it(tracker):
    (run,) = tracker.search_runs("")
    tracker.client.delete_run(run.info.run_id)
    for name in ("small/fcn8s", "fcn8s", run.info.run_id):
        with pytest.raises(ResultError, match=f"mlflow runs restore --run-id {run.info.run_id}"):
            register(name, "shapes", None, tracker.root)
    tracker.client.restore_run(run.info.run_id)
    assert register("small/fcn8s", "shapes", None, tracker.root) == "models:/shapes/1"


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(tracker, capfd):
    tracker.client.delete_experiment(tracker.experiment_id())
    record = tracker.record("evaluation", "fcn16s", "model_sha256", "b", params={}, datasets={})
    tracker.log(record, {"mean_iu": 0.5}, {})
    warning = capfd.readouterr().err
    with pytest.raises(ResultError, match="restore"):
        list(replay("small", tracker.root))
    way_back(warning, capfd)
    assert [is_complete for is_complete, _ in replay("small", tracker.root)] == [True, True]
    assert sorted(run.info.run_name for run in tracker.search_runs("")) == ["fcn16s", "fcn8s"]


def test_runs_of_a_renamed_experiment_are_found_and_not_doubled(tracker):
    tracker.client.rename_experiment(tracker.experiment_id(), "October")
    assert register("small/fcn8s", "shapes", None, tracker.root) == "models:/shapes/1"
    digest = tracker.search_runs("")[0].data.tags["model_sha256"]
    tracker.log(
        tracker.record("evaluation", "fcn8s", "model_sha256", digest, params={}, datasets={}), {"a": 1.0}, {}
    )
    (run,) = tracker.search_runs("")
    assert run.data.metrics == {"a": 1.0}


def test_a_renamed_run_is_found_by_its_net_and_by_its_new_name(tracker):
    (run,) = tracker.search_runs("")
    tracker.client.update_run(run.info.run_id, name="the good one")
    assert register("small/fcn8s", "shapes", None, tracker.root) == "models:/shapes/1"
    assert register("the good one", "shapes", None, tracker.root) == "models:/shapes/1"


@pytest.mark.parametrize("how", ["register", "replay"])
def test_a_deleted_model_is_logged_again(tracker, how):
    (run,) = tracker.search_runs("")
    tracker.client.delete_logged_model(find_model(tracker.client, run).model_id)
    if how == "replay":
        assert [message.rpartition(": ")[2] for _, message in replay("small", tracker.root)] == ["1 files"]
        (run,) = tracker.search_runs("")
        assert find_model(tracker.client, run)
    assert register("small/fcn8s", "shapes", None, tracker.root) == "models:/shapes/1"


def test_a_deleted_registered_name_is_made_again(tracker):
    register("small/fcn8s", "shapes", "champion", tracker.root)
    tracker.client.delete_registered_model("shapes")
    assert register("small/fcn8s", "shapes", "champion", tracker.root) == "models:/shapes@champion"


def test_a_seeds_run_whose_model_mlflow_never_had_is_refused_with_the_way_to_one(root):
    tracker = Tracker("small", root)
    record = tracker.record(
        "training", "fcn8s seed 7", MEMBER, "seeds-ab/seed 7/x", params={}, datasets={}, group="seeds-ab"
    )
    tracker.log(record, {}, {})
    with pytest.raises(ResultError, match=r"fcn8s seed 7.*dvc repro"):
        register("fcn8s seed 7", "shapes", None, root)
