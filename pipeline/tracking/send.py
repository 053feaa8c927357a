"""Sends numbers, data sets and files to one MLflow run, in as few calls as MLflow allows."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run

from pipeline.curves import read_points

MAX_METRICS = 1000  # MLflow's limit for one call
MAX_PARAMS = 100  # MLflow's limit for one call
MAX_DIGEST_LENGTH = 36  # MLflow's limit


def send_points(client: MlflowClient, run_id: str, curves: Path, after_step: int) -> tuple[int, int]:
    """Send the points of later steps, and return (how many, the last step that MLflow has now).

    All values of a step go in one call, so a failed call leaves no step half sent.
    """
    points = read_points(curves, after_step)
    num_points = len(points)
    while points:
        batch_size = max(1, MAX_METRICS // max(len(point.values) for point in points))
        batch, points = points[:batch_size], points[batch_size:]
        metrics = [
            Metric(metric_name(key), value, point.time_ms, point.step)
            for point in batch
            for key, value in point.values.items()
        ]
        client.log_batch(run_id, metrics)
        after_step = batch[-1].step
    return num_points, after_step


def last_step(client: MlflowClient, run_id: str, metric: str = "loss") -> int:
    """Return the step of a curve's last point in MLflow, or -1 if it has none."""
    return max((point.step for point in client.get_metric_history(run_id, metric)), default=-1)


def send_scores(client: MlflowClient, run_id: str, scores: Sequence[Metric]) -> None:
    for i in range(0, len(scores), MAX_METRICS):
        client.log_batch(run_id, metrics=scores[i : i + MAX_METRICS])


def send_params(client: MlflowClient, run: Run, values: Mapping[str, str], *, adds: bool) -> None:
    """Send the params that a run lacks; an outage may have come between two calls.

    adds: also to a run that has params of another origin.
    """
    names, present = metric_names(values), run.data.params
    if not adds and not present.keys() <= set(names.values()):
        return
    params = [Param(names[key], value) for key, value in values.items() if names[key] not in present]
    for i in range(0, len(params), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=params[i : i + MAX_PARAMS])


def send_datasets(client: MlflowClient, run_id: str, profile: str, digests: Mapping[str, str]) -> None:
    """Name the splits that a run used.

    digests: by split.
    """
    inputs = []
    for split, digest in digests.items():
        source = json.dumps({"uri": f"data/{profile}/shards/{split}"})
        dataset = Dataset(f"{profile}-{split}", digest[:MAX_DIGEST_LENGTH], "local", source)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    if inputs:
        client.log_inputs(run_id, inputs)


def metric_name(key: str) -> str:
    """Return the name with "_" for what MLflow refuses: some characters, such as &, and empty parts of a path."""
    parts = re.sub(r"[^\w.\- :/]", "_", key).split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def metric_names(keys: Iterable[str]) -> dict[str, str]:
    """Return each key's name in MLflow; those of keys that would have one name end in hashes of the keys."""
    names = {key: metric_name(key) for key in keys}
    numbers = Counter(names.values())
    return {
        key: name if numbers[name] == 1 else f"{name}_{hashlib.sha256(key.encode()).hexdigest()[:6]}"
        for key, name in names.items()
    }
