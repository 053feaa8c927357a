"""Finds runs in MLflow by id, name or net: to download their scores, or to register their models."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import LoggedModel, Run

from pipeline import paths
from pipeline.errors import ResultError
from pipeline.tracking.models import find_model, log_model, register_version
from pipeline.tracking.moved import DATABASE
from pipeline.tracking.outage import OUTAGE, one_line
from pipeline.tracking.tracker import MEMBER, Tracker, equals, is_deleted

RUN_HELP = "give a metrics JSON, profile/net, or the id or name of a run"


def download_metrics(run: str, root: Path, folder: Path) -> Path:
    """Download a run's metrics JSON, and its Parquet file of each image, into `folder`. Return the JSON's path.

    run: id or name of an MLflow run; of several runs with that name, the newest is used.

    Raises ResultError if the run is missing or has no scores.
    """
    tracker = _open_tracker("any", root, run)
    with _failure_means(f"run {run!r} cannot be read from MLflow"):
        metrics = _download(tracker, _present(tracker, run, _named_run(tracker, run)).info.run_id, folder)
    if metrics:
        return metrics
    raise ResultError(f"MLflow's run {run!r} has no scores; evaluate that model again, or name another run")


class Child(NamedTuple):
    """A scored child of a run.

    name: of the child's run: "fcn8s seed 1338".
    variant: of the profile: "seed 1338".
    are_seeds: whether the parent's children differ in their seeds alone.
    metrics: its metrics JSON, beside its Parquet file of each image.
    """

    name: str
    net: str
    variant: str
    are_seeds: bool
    metrics: Path


def download_children(parent: str, root: Path, folder: Path) -> list[Child]:
    """Download the scores of a run's children into `folder`; return the children in the order of chain and name.

    parent: id or name of an MLflow run; of several runs with that name, the newest is used.

    Raises ResultError if the run is missing or has no scored children.
    """
    tracker = _open_tracker("any", root, parent)
    with _failure_means(f"children of run {parent!r} cannot be read from MLflow"):
        run = _present(tracker, parent, _named_run(tracker, parent))
        found = tracker.client.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", max_results=10_000
        )
        children = []
        for child in found:
            tags, dest = child.data.tags, folder / child.info.run_id
            dest.mkdir()
            if (metrics := _download(tracker, child.info.run_id, dest)) and MEMBER in tags and "net" in tags:
                variant = tags[MEMBER].split("/")[1]
                name = child.info.run_name or child.info.run_id
                children.append(Child(name, tags["net"], variant, "seeds" in run.data.tags, metrics))
    if not children:
        raise ResultError(f"MLflow's run {parent!r} has no children with scores; name a run of `fcn seeds`")
    return sorted(
        children, key=lambda child: (paths.CHAIN.index(child.net), len(child.variant), child.variant)
    )


def _download(tracker: Tracker, run_id: str, folder: Path) -> Path | None:
    """Download a run's files of scores; return the path of the JSON, or None if it has none."""
    names = [file.path for file in tracker.client.list_artifacts(run_id)]
    names = [name for name in names if name.endswith((".json", ".parquet"))]
    for name in names:
        tracker.client.download_artifacts(run_id, name, str(folder))
    return next((folder / name for name in names if name.endswith(".json")), None)


def register(run: str, name: str, alias: str | None, root: Path) -> str:
    """Register a run's model in MLflow's registry, and return the URI to load it by.

    run: profile/net as in metrics/, or the id or name of an MLflow run.
    name: of the registered model.
    alias: leads to this version from now on.

    Raises ResultError if a name is invalid, the run is missing, or it has no model.
    """
    if not name.strip() or re.search(r"[/:']", name):
        raise ResultError(f"a model's name must not be empty or contain / : or ', got {name!r}")
    if alias is not None and (not re.fullmatch(r"[\w\-]+", alias) or re.fullmatch(r"(?i)v\d+|latest", alias)):
        raise ResultError(
            f"an alias consists of letters, digits, _ and -, and is neither 'latest' nor v and a number; got {alias!r}"
        )
    profile, net = paths.profile_and_net(run) or ("any", "")
    tracker = _open_tracker(profile, root, run)
    with _failure_means(f"run {run!r} cannot be registered in MLflow"):
        model_run = _present(tracker, run, _net_run(tracker, net) if net else _named_run(tracker, run))
        model = find_model(tracker.client, model_run) or _log_file(tracker, net, model_run)
        if model is None and MEMBER in model_run.data.tags:
            raise ResultError(
                f"MLflow's run {run!r} is of a seed or a trial, whose models stay out of MLflow; give the profile the "
                "values of that run, such as train.seed, run `dvc repro`, and register PROFILE/NET"
            )
        if model is None:
            raise ResultError(
                f"MLflow's run {run!r} has no model, or its files are gone; `fcn tracking replay` logs it if its "
                f"training is still in {paths.RUNS}, and `fcn register PROFILE/NET` if it is still in models/; else "
                "train it again"
            )
        version = register_version(tracker.client, model_run, model, name, alias).version
    return f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"


@contextmanager
def _failure_means(what: str) -> Iterator[None]:
    """Raise ResultError with `what` and the reason if MLflow fails in the block; a ResultError passes as it is."""
    try:
        yield
    except ResultError:
        raise
    except OUTAGE as error:
        raise ResultError(f"{what}: {one_line(error)}") from error


def _open_tracker(profile: str, root: Path, run: str) -> Tracker:
    tracker = Tracker(profile, root)
    # Opening a missing database would create it
    if tracker.is_own and not (root / DATABASE).exists():
        raise ResultError(
            f"unknown run {run!r}: no such file, and no {DATABASE} in {root}; {RUN_HELP}. Of results from `dvc pull`, "
            "`dvc repro --force --single-item evaluate@NET` makes a run"
        )
    return tracker


def _present(tracker: Tracker, name: str, run: Run) -> Run:
    """Return the run unless it was deleted in MLflow."""
    if is_deleted(run):
        command = tracker.shell(f"runs restore --run-id {run.info.run_id}")
        raise ResultError(f"run {name!r} was deleted in MLflow; restore it: {command}")
    return run


def _log_file(tracker: Tracker, net: str, run: Run) -> LoggedModel | None:
    """Log the net's file in models/ as the model of its run, and return it; None if it is missing or another net."""
    from pipeline.models import checkpoint  # imports torch, which takes seconds

    path = tracker.root / paths.model(tracker.profile, net)
    if not net or not path.exists() or checkpoint.load(path, "model")[1] != run.data.tags["model_sha256"]:
        return None
    log_model(tracker.client, run, net, path)
    return find_model(tracker.client, run)


def _net_run(tracker: Tracker, net: str) -> Run:
    """Return the run of the model whose scores are in metrics/<profile>/<net>.json."""
    path = tracker.root / paths.metrics(tracker.profile, net)
    try:
        digest = json.loads(path.read_text(encoding="utf-8"))["model_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} has no readable model_sha256 ({error}); run `dvc repro evaluate`"
        ) from error
    if runs := tracker.runs_of_model(digest):
        return runs[0]
    raise ResultError(
        f"MLflow has no run of {tracker.profile}/{net}'s model, sha256 {digest}; run `fcn tracking replay`, which "
        "sends what MLflow lacks"
    )


def _named_run(tracker: Tracker, run: str) -> Run:
    """Return the run with this id, else the newest with this name."""
    for field in ("run_id", "run_name"):
        if runs := tracker.search_runs(equals(f"attributes.{field}", run), everywhere=True):
            return runs[0]
    raise ResultError(f"unknown run {run!r}: neither a file nor a run of MLflow; {RUN_HELP}")
