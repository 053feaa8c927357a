"""Runs found again: their scores, and their models under a name of the registry."""

import json
import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import paths
from pipeline.errors import ResultError
from pipeline.tracking import models
from pipeline.tracking.outage import OUTAGE, in_words
from pipeline.tracking.tracker import Tracker

RUNS_ARE = "give a metrics JSON, profile/net, or the id or name of a run"


def download_metrics(run: str, root: Path, folder: Path) -> Path:
    """The metrics JSON that an MLflow run of this id or, the newest, of this name holds, brought into `folder`.

    With it comes its Parquet file. ResultError if there is no such run, or it holds no scores.
    """
    tracker = _existing("any", root, run)
    try:
        run_id = _named(tracker.client, run).info.run_id
        names = [file.path for file in tracker.client.list_artifacts(run_id)]
        found = [name for name in names if name.endswith((".json", ".parquet"))]
        for name in found:
            tracker.client.download_artifacts(run_id, name, str(folder))
    except OUTAGE as error:
        raise ResultError(f"MLflow cannot give run {run!r}: {in_words(error)}") from error
    if not (scores := [name for name in found if name.endswith(".json")]):
        raise ResultError(
            f"MLflow's run {run!r} holds no scores; evaluate that model again, or name another run"
        )
    return folder / scores[0]


def register(run: str, name: str, alias: str | None, root: Path) -> str:
    """Gives a run's model a name of MLflow's registry, and the alias; says which version of that name it is.

    run: as for `fcn compare`, but for a metrics JSON. ResultError if it is not there or has no model.
    """
    if not name.strip() or re.search(r"[/:']", name):
        raise ResultError(f"a model's name must not be empty or hold / : or ', got {name!r}")
    if alias is not None and (not re.fullmatch(r"[\w\-]+", alias) or re.fullmatch(r"(?i)v\d+|latest", alias)):
        raise ResultError(
            f"an alias is letters, digits, _ and -, and neither 'latest' nor v and a number, got {alias!r}"
        )
    profile, _, net = run.partition("/")
    tracker = _existing(profile if net else "any", root, run)
    try:
        found = _of_net(tracker, profile, net, run) if net else _named(tracker.client, run)
        model = models.logged_model(tracker.client, found)
        if model is None:
            raise ResultError(
                f"MLflow's run {run!r} has no model; `fcn tracking replay` logs it if its training is still in "
                f"{paths.RUNS}, else train it again"
            )
        version = models.register(tracker.client, found, model, name, alias).version
    except OUTAGE as error:
        raise ResultError(f"MLflow cannot register run {run!r}: {in_words(error)}") from error
    return f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"


def _existing(profile: str, root: Path, run: str) -> Tracker:
    tracker = Tracker(profile, root)
    if tracker.uri.startswith("sqlite:") and not (root / "mlflow.db").exists():  # it would be made
        raise ResultError(f"unknown run {run!r}: no such file, and no mlflow.db in {root}; {RUNS_ARE}")
    return tracker


def _of_net(tracker: Tracker, profile: str, net: str, run: str) -> Run:
    """The run of the model that metrics/<profile>/<net>.json are the scores of."""
    path = tracker.root / paths.metrics(profile, net)
    try:
        digest = json.loads(path.read_text(encoding="utf-8"))["model_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} does not say which model was scored ({error}); run `dvc repro evaluate`"
        ) from error
    if found := tracker.search(f"tags.model_sha256 = '{digest}'"):
        return found[0]
    raise ResultError(
        f"MLflow has no run of {run}'s model, sha256 {digest}; `fcn tracking replay` sends what waits"
    )


def _named(client: MlflowClient, run: str) -> Run:
    """The run of this id or, the newest, of this name."""
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
            return found[0]
    raise ResultError(f"unknown run {run!r}: neither a file nor a run of MLflow; {RUNS_ARE}")
