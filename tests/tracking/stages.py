"""What the stages log of a net, and a check that MLflow has each thing of it once."""

import json
import time
from pathlib import Path

import pytest
from mlflow.entities import Run, ViewType

from pipeline import paths
from pipeline.curves import append_point
from pipeline.tracking import Follower, Tracker, replay
from pipeline.tracking.records import Record
from tests.tiny_model import write_model

STEPS = range(10, 60, 10)
RECIPE = {"lr": 0.1, "seed": 1} | {f"p{number}": number for number in range(110)}  # more than one call takes
METRICS = {"mean_iu": 0.5, "iu/disc": 0.25}


def wait_for(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def curves_of(tracker: Tracker, attempt: str = "a") -> Path:
    folder = tracker.root / "runs" / tracker.profile / attempt
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "curves.jsonl"


def begin_training(tracker: Tracker, attempt: str = "a", **params) -> Record:
    return tracker.record(
        "training",
        "fcn8s",
        "fcn.attempt",
        attempt,
        params=RECIPE | params,
        datasets={"train": "t" * 36},
        curves=curves_of(tracker, attempt),
    )


def append(tracker: Tracker, step: int, attempt: str = "a") -> float:
    """Append a point as training does, and return the seconds it took."""
    before = time.perf_counter()
    append_point(curves_of(tracker, attempt), step, {"loss": 100 / step, "lr": 0.1})
    return time.perf_counter() - before


def end_training(
    tracker: Tracker, record: Record, model: Path | None = None, digest: str = "digest of a"
) -> None:
    tracker.log(record, {}, {"model_sha256": digest, "chain": "c"}, model=model)


def log_net(tracker: Tracker, path: Path, net: str) -> None:
    """Log a trained net, and write its scores, as the stages do."""
    digest = write_model(path, seed=len(net))
    record = tracker.record("training", net, "fcn.attempt", f"attempt-{net}", params={}, datasets={})
    end_training(tracker, record, path, digest)
    metrics = tracker.root / paths.metrics(tracker.profile, net)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"model_sha256": digest}))


def train(tracker: Tracker, attempt: str = "a", model: Path | None = None) -> float:
    """Log a training, and return the seconds that the slowest point took."""
    follower, delays = Follower(tracker, begin_training(tracker, attempt)), []
    with follower:
        for step in STEPS:
            delays.append(append(tracker, step, attempt))
            time.sleep(0.03)
    end_training(tracker, follower.record, model, f"digest of {attempt}")
    return max(delays)


def begin_evaluation(tracker: Tracker, attempt: str = "a") -> Record:
    digest = f"digest of {attempt}"
    return tracker.record(
        "evaluation", "fcn8s", "model_sha256", digest, params={"net": "fcn8s"}, datasets={"val": "v"}
    )


def evaluate(tracker: Tracker, attempt: str = "a") -> None:
    """Log an evaluation with scores, a figure and a file."""
    figure, scores = tracker.root / "fcn8s.png", tracker.root / "fcn8s.json"
    figure.write_bytes(b"\x89PNG of " + attempt.encode())
    scores.write_text(json.dumps(METRICS))
    tracker.log(begin_evaluation(tracker, attempt), METRICS, {"val_digest": "v"}, [figure], [scores])


def replay_all(tracker: Tracker) -> list[str]:
    """Replay, and return the message of each record, all of which MLflow must have afterwards."""
    outcomes = list(replay(tracker.profile, tracker.root))
    assert all(is_complete for is_complete, _ in outcomes), outcomes
    return [message.partition(": ")[2] for _, message in outcomes]


def only_run(tracker: Tracker, view: int = ViewType.ACTIVE_ONLY) -> Run:
    (run,) = tracker.client.search_runs([tracker.experiment_id()], run_view_type=view)
    return run


def history(tracker: Tracker, run_id: str, metric: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in tracker.client.get_metric_history(run_id, metric))


def datasets(run: Run) -> list[tuple[str, str]]:
    inputs = [one.dataset for one in run.inputs.dataset_inputs]
    return sorted((dataset.name.rpartition("-")[2], dataset.digest) for dataset in inputs)


def assert_training_is_there_once(tracker: Tracker, attempt: str = "a") -> Run:
    run = only_run(tracker)
    assert history(tracker, run.info.run_id, "loss") == [(step, pytest.approx(100 / step)) for step in STEPS]
    assert history(tracker, run.info.run_id, "lr") == [(step, 0.1) for step in STEPS]
    assert run.data.params.items() >= {key: str(value) for key, value in RECIPE.items()}.items()
    assert (run.data.tags["fcn.attempt"], run.data.tags["chain"]) == (attempt, "c")
    assert run.data.tags["model_sha256"] == f"digest of {attempt}"
    assert (run.info.run_name, run.info.status) == ("fcn8s", "FINISHED")
    assert datasets(run)[0] == ("train", "t" * 36)
    return run


def assert_evaluation_is_there_once(tracker: Tracker, attempt: str = "a") -> Run:
    run = only_run(tracker)
    run_id = run.info.run_id
    for name, value in METRICS.items():
        assert history(tracker, run_id, name) == [(0, value)]
    assert (run.data.tags["model_sha256"], run.data.tags["val_digest"]) == (f"digest of {attempt}", "v")
    assert run.info.status == "FINISHED"
    assert datasets(run)[-1] == ("val", "v")
    assert {file.path for file in tracker.client.list_artifacts(run_id)} == {"figures", "fcn8s.json"}
    figure = tracker.client.download_artifacts(run_id, "figures/fcn8s.png", str(tracker.root))
    assert Path(figure).read_bytes() == b"\x89PNG of " + attempt.encode()
    return run


def assert_all_is_there_once(tracker: Tracker, attempt: str = "a") -> None:
    assert_training_is_there_once(tracker, attempt)
    run = assert_evaluation_is_there_once(tracker, attempt)
    assert len(run.inputs.dataset_inputs) == 2
