"""A profile's experiment: the run a record belongs to, and what of the record it lacks."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.store.db import utils as database

from pipeline import git
from pipeline.tracking.models import log_model, logged_model
from pipeline.tracking.outage import OUTAGE, in_words, is_down, warn, without_secrets
from pipeline.tracking.points import last_step, named, send_points, send_scores
from pipeline.tracking.record import Record, Shelf, sha256_of_text

MAX_TAGS = 100  # MLflow's limit for one call, of params and tags each
MAX_LENGTH = 6000  # MLflow's limit of a param; a tag may be longer
MAX_DIGEST_LENGTH = 36  # MLflow's limit, of a data set's digest
ID_OF_PARENT = "parent_run"


class Sent(NamedTuple):
    """What of a record MLflow lacked; files: and models.   missing: those that are not what they were, not sent."""

    points: int = 0
    metrics: int = 0
    files: int = 0
    missing: tuple[str, ...] = ()


class Tracker:
    """Experiment fcn-<profile> on the server MLFLOW_TRACKING_URI names, else in mlflow.db at the project's root."""

    def __init__(self, profile: str, root: Path):
        self.profile, self.root = profile, root.resolve()
        self.experiment = f"fcn-{profile}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"
        self.shelf = Shelf(self.root, profile)

    @cached_property
    def client(self) -> MlflowClient:
        """Made when first used: with a database it opens that at once, which takes seconds and can fail."""
        database.MAX_RETRY_COUNT = 1  # or a database that is down holds a stage up for 100 seconds
        return MlflowClient(self.uri)

    @property
    def destination(self) -> str:
        """Tells this server from others in a file, and says nothing of it."""
        return sha256_of_text(without_secrets(self.uri))[:16]

    def record(
        self,
        kind: str,
        name: str,
        key: str,
        value: str,
        *,
        params: Mapping[str, Any],
        datasets: Mapping[str, str],
        curves: Path | None = None,
    ) -> Record:
        """A record, begun now, of the run that the tag `key` finds by this value.

        kind: one of record.KINDS.   params: may be nested.   datasets: digest by split.   curves: a file of spool.
        """
        flat = {name: str(value)[:MAX_LENGTH] for name, value in flattened(params).items()}
        path = None if curves is None else str(curves.relative_to(self.root))
        return Record(kind, name, key, value, flat, git_tags(self.root), datasets, curves=path)

    def log(
        self,
        record: Record,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        figures: Sequence[Path] = (),
        files: Sequence[Path] = (),
        model: Path | None = None,
    ) -> None:
        """Ends a record with final numbers, tags, pictures (artifact folder "figures"), files and a model; sends it.

        Before it goes what waits from earlier. If MLflow does not take it all, that is warned of, and waits.
        """
        described = [self.shelf.described(path, "figures") for path in figures]
        described += [self.shelf.described(path) for path in files]
        record = record.ended(
            metrics=dict(metrics),
            tags={key: value[:MAX_LENGTH] for key, value in tags.items()},
            files=tuple(described),
            model=model and self.shelf.described(model),
        )
        try:
            self.shelf.put(record)
            try:
                self._send_waiting(record)
            finally:
                if not self.shelf.is_sent(record, self.destination):
                    self.shelf.keep_files(record)
        except OUTAGE as error:
            self._warn_of(error)

    def _send_waiting(self, newest: Record) -> None:
        """Sends every record that has ended and that this server has not got."""
        records, damaged = self.shelf.all()
        for sentence in damaged:
            warn(sentence)
        for record in records:
            if record.ended_ms is None or self.shelf.is_sent(record, self.destination):
                continue
            try:
                sent = self.send(record, anew=record == newest)
                if sent and sent.missing:
                    warn(f"{record.name}: not sent, because changed since: {', '.join(sent.missing)}")
            except OUTAGE as error:
                if is_down(error):
                    raise
                self._warn_of(error)

    def _warn_of(self, error: Exception) -> None:
        folder = self.shelf.folder.relative_to(self.root)
        warn(f"{in_words(error)}; what MLflow lacks is kept in {folder}, and `fcn tracking replay` sends it")

    def send(self, record: Record, *, anew: bool = False) -> Sent | None:
        """Brings MLflow up to date with a record; what it lacked, or None if its run was deleted there.

        anew: then it gets another run. Sent again, after whatever went wrong on the way, it leaves nothing there twice.
        """
        with self.shelf.locked(record):
            run = self.open(record, anew=anew)
            if run.info.lifecycle_stage == LifecycleStage.DELETED:
                self.shelf.mark_sent(record, self.destination)
                return None
            sent = Sent()
            if run.data.tags.get(record.logged_tag) != record.digest:
                sent = self._add(run, record)
            if record.ended_ms is not None:
                self.shelf.mark_sent(record, self.destination)
        return sent

    def _add(self, run: Run, record: Record) -> Sent:
        client, run_id, curves = self.client, run.info.run_id, self.shelf.curves(record)
        points = send_points(client, run_id, curves, last_step(client, run_id))[0] if curves else 0
        if record.datasets:
            client.log_inputs(run_id, [self._dataset(*one) for one in record.datasets.items()])
        time_ms = record.ended_ms or record.begun_ms
        scores = [Metric(named(key), value, time_ms, 0) for key, value in record.metrics.items()]
        new = [one for one in scores if run.data.metrics.get(one.key) != one.value]
        send_scores(client, run_id, new)
        wanted = list(record.files)
        if record.model and not logged_model(client, run):
            wanted.append(record.model)
        missing = []
        for kept in wanted:
            path = self.shelf.locate(record, kept)
            if path is None:
                missing.append(kept.path)
            elif kept is record.model:
                log_model(client, run, record.name, path)
            else:
                client.log_artifact(run_id, str(path), kept.place or None)
        self._end(run, record, is_whole=not missing)
        return Sent(points, len(new), len(wanted) - len(missing), tuple(missing))

    def _end(self, run: Run, record: Record, *, is_whole: bool) -> None:
        """Tags, and, last of all, that the record is there; until it has ended it is only as far as it is."""
        run_id, tags = run.info.run_id, dict(record.tags) | self._parent(run, record)
        if record.ended_ms is not None:
            if run.info.status != "FINISHED" or record.kind == "training":  # which is how long the run took
                self.client.set_terminated(run_id, end_time=record.ended_ms)
            tags |= {record.key: record.value}
            if is_whole:
                tags |= {record.logged_tag: record.digest}
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def open(self, record: Record, *, anew: bool = False) -> Run:
        """The newest run with the record's tag, else a new one, with its params; a deleted one unless `anew`."""
        experiment_id = self._experiment_id()
        run = self._find(experiment_id, record)
        if run is None or (anew and run.info.lifecycle_stage == LifecycleStage.DELETED):
            tags = dict(record.origin) | {record.key: record.value}
            run = self.client.create_run(experiment_id, record.begun_ms, tags, record.name)
        elif run.info.lifecycle_stage == LifecycleStage.DELETED:
            return run
        if not run.data.params:  # a new one, or the server went away before it had them
            flat = [Param(named(key), value) for key, value in record.params.items()]
            for i in range(0, len(flat), MAX_TAGS):
                self.client.log_batch(run.info.run_id, params=flat[i : i + MAX_TAGS])
        return run

    def _find(self, experiment_id: str, record: Record) -> Run | None:
        if found := self.search(f"tags.`{record.key}` = '{record.value}'", experiment_id):
            return found[0]
        digest = record.tags.get("model_sha256")
        if digest:  # its evaluation, on another machine, may have come first
            for run in self.search(f"tags.model_sha256 = '{digest}'", experiment_id):
                if record.key not in run.data.tags:
                    return run
        return None

    def search(self, filter_string: str, experiment_id: str | None = None) -> list[Run]:
        """The experiment's runs, the newest first, those that are there before those that were deleted."""
        found = self.client.search_runs(
            [experiment_id or self._experiment_id()],
            filter_string,
            ViewType.ALL,
            order_by=["attributes.start_time DESC"],
            max_results=100,
        )
        return sorted(found, key=lambda run: run.info.lifecycle_stage == LifecycleStage.DELETED)

    def _parent(self, run: Run, record: Record) -> dict[str, str]:
        """Leads from a net's run to the run of the net it was started from, if that is there."""
        parent = record.tags.get("parent_sha256")
        found = parent and self.search(f"tags.model_sha256 = '{parent}'", run.info.experiment_id)
        if not found:
            return {}
        info = found[0].info
        link = f"[{info.run_name}](#/experiments/{info.experiment_id}/runs/{info.run_id})"
        return {ID_OF_PARENT: info.run_id, "mlflow.note.content": f"Started from {link}."}

    def _dataset(self, split: str, digest: str) -> DatasetInput:
        source = json.dumps({"uri": f"data/{self.profile}/shards/{split}"})
        dataset = Dataset(f"{self.profile}-{split}", digest[:MAX_DIGEST_LENGTH], "local", source)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])

    def _experiment_id(self) -> str:
        if found := self.client.get_experiment_by_name(self.experiment):
            return found.experiment_id
        # With a database, beside the project's own, wherever the stage was started; a server has a place of its own
        local = (self.root / "mlartifacts" / self.experiment).as_uri()
        is_server = self.uri.startswith(("http://", "https://"))
        return self.client.create_experiment(self.experiment, None if is_server else local)


def git_tags(root: Path) -> dict[str, str]:
    """The commit the checkout is at and whether files differ from it; nothing outside a git checkout."""
    found = git.of(root)
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
