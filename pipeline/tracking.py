"""MLflow: runs, curves and figures. No other module imports it, and no failure of it stops a stage."""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# By default a dead server holds a call up for four minutes; the curves are on disk and can wait
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline import commit, spool
from pipeline.errors import ResultError

POLL_S = 2.0  # between two looks at the curves: what the UI lags behind
MAX_METRICS = 1000  # MLflow's limit for one call
MAX_PARAM_LENGTH = 6000  # MLflow's limit
MAX_PARAMS = 100  # MLflow's limit for one call
MAX_DIGEST_LENGTH = 36  # MLflow's limit, of a data set's digest
# What an unreachable or failing server, a damaged database, or one whose driver is not installed raises
OUTAGE = (MlflowException, OSError, SQLAlchemyError, ImportError)
RUNS_ARE = "give a metrics JSON, profile/net, or the id or name of a run"


class Tracker:
    """Experiment fcn-<profile> on the server MLFLOW_TRACKING_URI names, else in mlflow.db at the project's root."""

    def __init__(self, profile: str, root: Path):
        self.profile = profile
        self.experiment = f"fcn-{profile}"
        self.root = root.resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @cached_property
    def client(self) -> MlflowClient:
        """Made when first used: with a database it opens that at once, which takes seconds and can fail."""
        return MlflowClient(self.uri)

    def open_run(self, name: str, tag: str, value: str, params: Mapping[str, Any]) -> str:
        """The id of the newest run whose `tag` has this value, else of a new one, with these params and that tag."""
        experiment_id = self._experiment_id()
        found = self.client.search_runs(
            [experiment_id], f"tags.{tag} = '{value}'", order_by=["attributes.start_time DESC"], max_results=1
        )
        tags = {tag: value} | git_tags(self.root)
        run = found[0] if found else self.client.create_run(experiment_id, run_name=name, tags=tags)
        if not run.data.params:  # a new one, or the server went away before it had them
            flat = [Param(key, str(v)[:MAX_PARAM_LENGTH]) for key, v in flattened(params).items()]
            for i in range(0, len(flat), MAX_PARAMS):
                self.client.log_batch(run.info.run_id, params=flat[i : i + MAX_PARAMS])
        return run.info.run_id

    def log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        figures: Sequence[Path] = (),
        files: Sequence[Path] = (),
    ) -> None:
        """Adds final numbers, tags, pictures (in the artifact folder "figures") and other files to a run, and ends it.

        A number the run already has is not added again.
        """
        now = time.time_ns() // 1_000_000
        known = self.client.get_run(run_id).data.metrics
        self.client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, 0) for key, value in metrics.items() if known.get(key) != value],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        for figure in figures:
            self.client.log_artifact(run_id, str(figure), "figures")
        for file in files:
            self.client.log_artifact(run_id, str(file))
        self.client.set_terminated(run_id)

    def log_datasets(self, run_id: str, digests: Mapping[str, str]) -> None:
        """Says which data a run is about, by the names of its splits: MLflow shows and finds runs by it."""
        inputs = []
        for split, digest in digests.items():
            source = json.dumps({"uri": f"data/{self.profile}/shards/{split}"})
            dataset = Dataset(f"{self.profile}-{split}", digest[:MAX_DIGEST_LENGTH], "local", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
        self.client.log_inputs(run_id, inputs)

    def last_step(self, run_id: str, metric: str) -> int:
        """The step of the last point of a curve, -1 if it has none."""
        return max((point.step for point in self.client.get_metric_history(run_id, metric)), default=-1)

    def _experiment_id(self) -> str:
        if found := self.client.get_experiment_by_name(self.experiment):
            return found.experiment_id
        # Beside the database, wherever the stage was started; a server has a place of its own
        local = (self.root / "mlartifacts" / self.experiment).as_uri()
        return self.client.create_experiment(
            self.experiment, artifact_location=local if self.uri.startswith("sqlite:") else None
        )


def download_metrics(run: str, root: Path, folder: Path) -> Path:
    """The metrics JSON that an MLflow run of this id or, the newest, of this name holds, brought into `folder`.

    With it comes its Parquet file. ResultError if there is no such run, or it holds no scores.
    """
    tracker = Tracker("any", root)
    if tracker.uri.startswith("sqlite:") and not (root / "mlflow.db").exists():  # it would be made
        raise ResultError(f"unknown run {run!r}: no such file, and no mlflow.db in {root}; {RUNS_ARE}")
    try:
        run_id = _run_id(tracker.client, run)
        names = [file.path for file in tracker.client.list_artifacts(run_id)]
        found = [name for name in names if name.endswith((".json", ".parquet"))]
        for name in found:
            tracker.client.download_artifacts(run_id, name, str(folder))
    except OUTAGE as error:
        raise ResultError(f"MLflow cannot give run {run!r}: {' '.join(str(error).split())}") from error
    if not (scores := [name for name in found if name.endswith(".json")]):
        raise ResultError(
            f"MLflow's run {run!r} holds no scores; evaluate that model again, or name another run"
        )
    return folder / scores[0]


def _run_id(client: MlflowClient, run: str) -> str:
    """The id of the run of this id or, the newest, of this name."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    name = run.replace("'", "\\'")
    for field in ("run_id", "run_name"):
        found = client.search_runs(
            experiments,
            f"attributes.{field} = '{name}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if found:
            return found[0].info.run_id
    raise ResultError(f"unknown run {run!r}: neither a file nor a run of MLflow; {RUNS_ARE}")


class Follower:
    """Replays a run's curves to MLflow while it trains, each point once, from a thread of its own."""

    def __init__(self, tracker: Tracker, curves: Path, name: str, attempt: str, params: Mapping[str, Any]):
        self._tracker, self._curves, self._name, self._attempt, self._params = (
            tracker,
            curves,
            name,
            attempt,
            params,
        )
        self._run_id: str | None = None
        self._step = -1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        was_down = False
        while not self._stopping.wait(POLL_S):
            try:
                self.replay()
                was_down = False
            except OUTAGE as error:
                if not was_down:
                    warn(f"{error}; training goes on, the curves wait in {self._curves}")
                was_down = True

    def replay(self) -> str:
        """Brings MLflow up to date with the curves on disk; the run's id."""
        if self._run_id is None:
            run_id = self._tracker.open_run(self._name, "fcn.attempt", self._attempt, self._params)
            self._step = self._tracker.last_step(run_id, "loss")
            self._run_id = run_id
        points = spool.read(self._curves, after_step=self._step)
        while points:
            now, points = _split(points)
            metrics = [
                Metric(key, v, point.time_ms, point.step) for point in now for key, v in point.values.items()
            ]
            self._tracker.client.log_batch(self._run_id, metrics=metrics)
            self._step = now[-1].step
        return self._run_id

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


def _split(points: list[spool.Point]) -> tuple[list[spool.Point], list[spool.Point]]:
    """As many whole points as one call takes, and the rest."""
    fit = max(1, MAX_METRICS // max(len(point.values) for point in points))
    return points[:fit], points[fit:]


@contextmanager
def outage_only_warns(what: str) -> Iterator[None]:
    """Lets a stage succeed whose tracking fails; `what` says where the result is kept instead."""
    try:
        yield
    except OUTAGE as error:
        warn(f"{error}; {what}")


def warn(message: str) -> None:
    message = re.sub(r"//[^/\s]*@", "//", " ".join(message.split()))  # a password in the server's address
    print(f"warning: tracking: {message}", file=sys.stderr, flush=True)


def git_tags(root: Path) -> dict[str, str]:
    """The commit the checkout is at and whether files differ from it; nothing outside a git checkout."""
    found = commit.of(root)
    if found is None:
        return {}
    # The first is MLflow's own name, which its UI shows as the run's version
    return {
        "mlflow.source.git.commit": found.commit,
        "git_commit": found.commit,
        "git_dirty": str(found.is_dirty).lower(),
    }


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return flat
