"""Numbers on their way to MLflow: in as few calls as it takes, under names it takes."""

import re
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from pipeline.curves import read_points

MAX_METRICS = 1000  # MLflow's limit for one call


def send_scores(client: MlflowClient, run_id: str, scores: Sequence[Metric]) -> None:
    for i in range(0, len(scores), MAX_METRICS):
        client.log_batch(run_id, metrics=scores[i : i + MAX_METRICS])


def send_points(client: MlflowClient, run_id: str, curves: Path, after_step: int) -> tuple[int, int]:
    """Sends the points of later steps, whole ones in each call; their number, and the last step that is there now."""
    points = read_points(curves, after_step)
    number = len(points)
    while points:
        fit = max(1, MAX_METRICS // max(len(point.values) for point in points))
        now, points = points[:fit], points[fit:]
        client.log_batch(
            run_id,
            [
                Metric(named(key), v, point.time_ms, point.step)
                for point in now
                for key, v in point.values.items()
            ],
        )
        after_step = now[-1].step
    return number, after_step


def last_step(client: MlflowClient, run_id: str, metric: str = "loss") -> int:
    """The step of the last point of a curve, -1 if it has none."""
    return max((point.step for point in client.get_metric_history(run_id, metric)), default=-1)


def named(key: str) -> str:
    """The name with what MLflow takes in one, such as a class's that has an & in it."""
    return re.sub(r"[^\w.\- :/]", "_", key)
