"""Runs in MLflow: in a database of the project, and through a server."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from pipeline.tracking import GROUP, MEMBER, Follower, Tracker
from pipeline.tracking.send import last_step
from tests.tracking.stages import (
    RECIPE,
    append,
    begin_evaluation,
    begin_training,
    curves_of,
    end_training,
    evaluate,
    history,
    only_run,
)


@pytest.fixture(params=["database", "server"])
def tracker(request, root, monkeypatch) -> Tracker:
    """A tracker that writes to a database of its own, and one that goes through the server."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server").uri)
    return Tracker(f"{request.param}-{root.name}", root)


def test_an_attempt_has_one_run_however_often_it_is_started_again(tracker):
    ids = [Follower(tracker, begin_training(tracker, attempt)).catch_up() for attempt in ("a", "a", "b", "a")]
    assert ids[0] == ids[1] == ids[3] != ids[2]
    run = tracker.client.get_run(ids[0])
    assert (run.info.run_name, run.data.tags["fcn.attempt"]) == ("fcn8s", "a")
    assert tracker.client.get_experiment(run.info.experiment_id).name == f"fcn-{tracker.profile}"


def test_a_driver_started_again_sends_only_the_points_that_mlflow_lacks(tracker, monkeypatch):
    for step in (1, 2, 3):
        append(tracker, step)
    Follower(tracker, begin_training(tracker)).catch_up()
    for step in (3, 4):  # step 3 was measured again after the checkpoint of step 2
        append(tracker, step)
    log_batch, steps = tracker.client.log_batch, []

    def spy(run_id, metrics=(), **others):
        steps.extend(metric.step for metric in metrics)
        log_batch(run_id, metrics=metrics, **others)

    monkeypatch.setattr(tracker.client, "log_batch", spy)
    run_id = Follower(tracker, begin_training(tracker)).catch_up()
    assert set(steps) == {4}
    assert history(tracker, run_id, "loss") == [(step, 100 / step) for step in (1, 2, 3, 4)]


def test_a_training_that_is_taken_up_after_its_curve_was_kept_sends_its_new_points(tracker):
    append(tracker, 1)
    tracker.log(begin_training(tracker), {}, {"trial": "stopped"})
    folder = curves_of(tracker).parent
    tracker.records.keep_curves(folder)
    shutil.rmtree(folder)
    follower = Follower(tracker, begin_training(tracker))
    for step in (1, 2):
        append(tracker, step)
    run_id = follower.catch_up()
    assert history(tracker, run_id, "loss") == [(1, 100.0), (2, 50.0)]


def test_a_curve_longer_than_one_call_takes_arrives_whole(tracker):
    for step in range(1, 701):
        append(tracker, step)
    run_id = Follower(tracker, begin_training(tracker)).catch_up()
    assert history(tracker, run_id, "loss") == [(step, 100 / step) for step in range(1, 701)]
    assert history(tracker, run_id, "lr") == [(step, 0.1) for step in range(1, 701)]
    assert last_step(tracker.client, run_id) == 700


def test_params_go_by_dotted_names_and_a_resume_changes_none(tracker):
    params = {"net": "fcn8s", "train": {"optimizer": {"name": "sgd"}}, "classes": ["a", "b"]}
    run_id = tracker.open_run(begin_training(tracker, **params, long="x" * 7000)).info.run_id
    tracker.open_run(begin_training(tracker, **params | {"net": "other"}))
    logged = tracker.client.get_run(run_id).data.params
    assert logged == {
        **{key: str(value) for key, value in RECIPE.items()},
        "net": "fcn8s",
        "train.optimizer.name": "sgd",
        "classes": "['a', 'b']",
        "long": "x" * 6000,
    }


def test_scores_and_figures_are_in_the_run_once_after_evaluating_twice(tracker):
    for _ in range(2):
        evaluate(tracker)
    run = only_run(tracker)
    assert history(tracker, run.info.run_id, "mean_iu") == [(0, 0.5)]
    figures = tracker.client.list_artifacts(run.info.run_id, "figures")
    assert [file.path for file in figures] == ["figures/fcn8s.png"]


def test_a_net_leads_to_the_run_of_the_net_it_was_started_from(tracker):
    parent = begin_training(tracker, "parent")
    tracker.log(parent, {}, {"model_sha256": "digest of parent"})
    end_training(tracker, begin_training(tracker, "child"))
    child = begin_training(tracker, "grandchild")
    tracker.log(child, {}, {"parent_sha256": "digest of parent"})
    runs = {run.data.tags["fcn.attempt"]: run for run in tracker.search_runs("")}
    assert runs["grandchild"].data.tags["parent_run"] == runs["parent"].info.run_id
    assert "parent_run" not in runs["child"].data.tags


def test_members_of_a_group_whose_run_was_deleted_are_children_of_its_new_run(tracker):
    def begin() -> str:
        tracker.begin(tracker.record("group", "seeds-ab", GROUP, "seeds-ab", params={}, datasets={}))
        return tracker.search_runs(f"tags.`{GROUP}` = 'seeds-ab'")[0].info.run_id

    first = begin()
    tracker.client.delete_run(first)
    second = begin()
    assert second != first
    assert begin() == second
    member = tracker.record(
        "evaluation", "fcn8s seed 1", MEMBER, "seeds-ab/1", params={}, datasets={}, group="seeds-ab"
    )
    tracker.log(member, {}, {})
    (child,) = tracker.search_runs(f"tags.`{MEMBER}` = 'seeds-ab/1'")
    assert child.data.tags["mlflow.parentRunId"] == second


def test_a_class_of_any_name_is_logged(tracker):
    tracker.log(begin_evaluation(tracker), {"iu/Tisch & Stühle (alt)": 0.5, "iu/car/truck": 0.25}, {})
    assert only_run(tracker).data.metrics == {"iu/Tisch _ Stühle _alt_": 0.5, "iu/car/truck": 0.25}


def test_classes_whose_names_mlflow_would_mix_up_or_refuse_are_logged_each(tracker):
    names = ["car (front)", "car [front]", "car", "x/", "a//b", ".", "..", "", "/"]
    scores = {f"iu/{name}": i / 10 for i, name in enumerate(names)}
    params = {f"weights.{name}": i for i, name in enumerate(names)}
    for _ in range(2):
        tracker.log(replace(begin_evaluation(tracker), params=params), scores, {})
    data = only_run(tracker).data
    assert sorted(data.metrics.values()) == sorted(scores.values())
    assert data.metrics["iu/car"] == scores["iu/car"]
    assert sorted(data.params.values()) == sorted(map(str, params.values()))


def test_without_a_server_everything_lies_at_the_root_wherever_the_stage_runs(
    root, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    tracker = Tracker("sample", root)
    evaluate(tracker)
    assert tracker.uri == f"sqlite:///{root}/mlflow.db"
    assert [path.name for path in (root / "mlartifacts" / "fcn-sample").rglob("*.png")] == ["fcn8s.png"]
    assert not list(elsewhere.iterdir())


def test_a_run_names_its_commit(root, tmp_path_factory, monkeypatch):
    checkout = tmp_path_factory.mktemp("checkout")
    identity = ["-c", "user.name=n", "-c", "user.email=e@x.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run(["git", "-C", str(checkout), *arguments], check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    tracker = Tracker("git", checkout)
    tags = tracker.open_run(begin_evaluation(tracker)).data.tags
    branch = (checkout / ".git" / "HEAD").read_text().split()[1]
    sha = (checkout / ".git" / branch).read_text().strip()
    assert tags["git_commit"] == tags["mlflow.source.git.commit"] == sha
    assert tags["git_dirty"] == "false"
