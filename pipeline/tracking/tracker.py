"""A profile's experiment in MLflow: keeps a record of each result on disk, and sends what MLflow lacks of it."""

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Metric, Run, RunTag, ViewType
from mlflow.store.db import utils as database

from pipeline import git, paths
from pipeline.errors import ResultError
from pipeline.surroundings import plain
from pipeline.tracking.models import find_model, log_model
from pipeline.tracking.moved import ARTIFACTS, DATABASE, correct_addresses
from pipeline.tracking.naming import flat, run_name
from pipeline.tracking.outage import OUTAGE, is_down, one_line, warn, without_passwords
from pipeline.tracking.records import Record, RecordStore
from pipeline.tracking.send import (
    last_step,
    metric_names,
    send_datasets,
    send_params,
    send_points,
    send_scores,
)

PROFILE = "fcn.profile"  # tag of an experiment
GROUP, MEMBER = "fcn.group", "fcn.member"  # tags that identify a group's run, and that of a member's net
MAX_LENGTH = 6000  # MLflow's limit of a param; a tag may be longer


class Sent(NamedTuple):
    """How much of a record MLflow lacked.

    points, scores, files: numbers of each that were sent; a model counts as a file.
    missing: paths of files that have changed since they were recorded, and were not sent.
    is_deleted: the run was deleted in MLflow, and nothing was sent.
    """

    points: int = 0
    scores: int = 0
    files: int = 0
    missing: tuple[str, ...] = ()
    is_deleted: bool = False

    def __str__(self) -> str:
        if self.is_deleted:
            return "its run was deleted in MLflow, and stays deleted"
        numbers = {"points": self.points, "scores": self.scores, "files": self.files}
        text = ", ".join(f"{number} {what}" for what, number in numbers.items() if number) or "nothing new"
        return f"{text}; changed since, and not sent: {', '.join(self.missing)}" if self.missing else text


class Tracker:
    """Experiment fcn-<profile> on the server of MLFLOW_TRACKING_URI, else in mlflow.db at the project's root.

    workspace: the folder that the stage runs in: the project, or DVC's copy of it for an experiment, which logs to the
        project's MLflow.
    """

    def __init__(self, profile: str, workspace: Path):
        self.profile, self.workspace = profile, workspace.resolve()
        self.root = paths.project(self.workspace)
        self.experiment = f"fcn-{profile}"
        own = f"sqlite:///{self.root / DATABASE}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        self.is_own = self.uri == own
        self.records = RecordStore(self.root, profile)

    @cached_property
    def client(self) -> MlflowClient:
        """The client, created on first use, because opening a database takes seconds and can fail."""
        database.MAX_RETRY_COUNT = 1  # by default, a stage would wait 100 seconds for a database that is down
        if self.is_own:
            correct_addresses(self.root)
        return MlflowClient(self.address)

    @property
    def address(self) -> str:
        """The address for MLflow, where a `?` in the project's path would begin options of the database."""
        return f"sqlite:///{plain(self.root) / DATABASE}" if self.is_own else self.uri

    @property
    def server(self) -> str:
        """A hash of the address. Files identify a server by it, so that they do not contain the address."""
        return hashlib.sha256(without_passwords(self.uri).encode()).hexdigest()[:16]

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
        group: str | None = None,
    ) -> Record:
        """Return a record that begins now; see Record for its fields.

        params: may be nested.
        curves: file of pipeline.curves, below the root.
        """
        title, experiment = run_name(name, self.profile, self.workspace)
        return Record(
            kind,
            name,
            key,
            value,
            params={key: str(value)[:MAX_LENGTH] for key, value in flat(params).items()},
            origin=_commit_tags(self.workspace) | experiment,
            datasets=datasets,
            curves=None if curves is None else str(curves.relative_to(self.root)),
            title=title,
            group=group,
        )

    def begin(self, record: Record) -> Record:
        """Return the record as it is on disk, and show its run in MLflow from now on. An outage is only a warning.

        A run that was deleted is replaced by another, so that the members of a group belong to one that is there.
        """
        record = self.records.begin(record)
        try:
            with self.records.lock(record):
                self.open_run(record, replaces_deleted=True)
        except OUTAGE as error:
            self._warn_of(error)
        return record

    def log(
        self,
        record: Record,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        figures: Sequence[Path] = (),
        files: Sequence[Path] = (),
        model: Path | None = None,
    ) -> None:
        """End a record with its results, and send it after earlier unsent records.

        An outage is reported as a warning; the records then wait on disk.

        figures: images for the artifact folder "figures".
        files: for the top of the artifacts.
        model: file of models/.
        """
        recorded = [self.records.describe(path, "figures") for path in figures]
        recorded += [self.records.describe(path) for path in files]
        record = record.ended(
            metrics=dict(metrics),
            tags={key: value[:MAX_LENGTH] for key, value in tags.items()},
            files=tuple(recorded),
            model=model and self.records.describe(model),
        )
        try:
            self.records.write(record)
            self._send_waiting(newest=record)
        except OUTAGE as error:
            self._warn_of(error)

    def _send_waiting(self, newest: Record) -> None:
        records, damaged = self.records.read_all()
        for message in damaged:
            warn(message)
        for record in records:
            if record.ended_ms is None or self.records.is_sent(record, self.server):
                continue
            try:
                sent = self.send(record, replaces_deleted=record == newest)
                if sent.missing:
                    warn(f"{record.name}: not sent, because changed since: {', '.join(sent.missing)}")
            except OUTAGE as error:
                if is_down(error):
                    raise
                self._warn_of(error)

    def _warn_of(self, error: Exception) -> None:
        folder = self.records.folder.relative_to(self.root)
        warn(f"{one_line(error)}; what MLflow lacks is kept in {folder}, and `fcn tracking replay` sends it")

    def send(self, record: Record, *, replaces_deleted: bool = False, checks_all: bool = False) -> Sent:
        """Send what MLflow lacks of a record. Sending again after any failure leaves nothing in MLflow twice.

        replaces_deleted: create another run if the record's run was deleted in MLflow.
        checks_all: look for every tag, file and model, even if MLflow had all of them once.
        """
        with self.records.lock(record):
            run = self.open_run(record, replaces_deleted=replaces_deleted)
            if is_deleted(run):
                sent = Sent(is_deleted=True)
            elif (had_all := run.data.tags.get(record.sent_tag) == record.digest) and not checks_all:
                sent = Sent()
            else:
                sent = self._send_missing(run, record, had_all=had_all)
            if record.ended_ms is not None:
                self.records.mark_sent(record, self.server)
        return sent

    def _send_missing(self, run: Run, record: Record, *, had_all: bool) -> Sent:
        """Send what the run lacks.

        had_all: the run's files are the record's; otherwise they may be those of an earlier record.
        """
        client, run_id = self.client, run.info.run_id
        num_points = 0
        if curves := self.records.find_curves(record):
            num_points, _ = send_points(client, run_id, curves, last_step(client, run_id))
        send_datasets(client, run_id, self.profile, record.datasets)
        time_ms = record.ended_ms or record.begun_ms
        names = metric_names(record.metrics)
        scores = [Metric(names[key], value, time_ms, 0) for key, value in record.metrics.items()]
        scores = [score for score in scores if run.data.metrics.get(score.key) != score.value]
        send_scores(client, run_id, scores)

        folders = {file.folder for file in record.files} if had_all else set()
        there = {file.path for folder in folders for file in client.list_artifacts(run_id, folder or None)}
        wanted = [file for file in record.files if str(Path(file.folder, Path(file.path).name)) not in there]
        if record.model and not find_model(client, run):
            wanted.append(record.model)
        missing = []
        for file in wanted:
            path = self.records.find(record, file)
            if path is None:
                missing.append(file.path)
            elif file is record.model:
                log_model(client, run, record.name, path)
            else:
                client.log_artifact(run_id, str(path), file.folder or None)
        self._finish(run, record, is_complete=not missing)
        return Sent(num_points, len(scores), len(wanted) - len(missing), tuple(missing))

    def _finish(self, run: Run, record: Record, *, is_complete: bool) -> None:
        """Set the tags in the last call.

        If the record has ended and all of it was sent, they include `sent_tag`.
        """
        tags = dict(record.tags) | self._parent_tags(record) | self._group_tags(record)
        if record.ended_ms is not None:
            # The run's end time is that of its training, even if its evaluation was sent before
            if run.info.status != "FINISHED" or record.kind == "training":
                self.client.set_terminated(run.info.run_id, end_time=record.ended_ms)
            tags |= {record.key: record.value}
            if is_complete:
                tags |= {record.sent_tag: record.digest}
        self.client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _parent_tags(self, record: Record) -> dict[str, str]:
        """Return tags that lead to the run of the net this one was started from, if MLflow has that run."""
        if not (digest := record.tags.get("parent_sha256")):
            return {}
        runs = self.runs_of_model(digest, record.group)
        if not runs:
            return {}
        info = runs[0].info
        link = f"[{info.run_name}](#/experiments/{info.experiment_id}/runs/{info.run_id})"
        return {"parent_run": info.run_id, "mlflow.note.content": f"Started from {link}."}

    def open_run(self, record: Record, *, replaces_deleted: bool = False) -> Run:
        """Return the record's run; create it if it is missing. It may be a deleted one unless `replaces_deleted`."""
        run = self._find_run(record)
        if run is None or (is_deleted(run) and replaces_deleted):
            tags = dict(record.origin) | {record.key: record.value} | self._group_tags(record)
            run = self.client.create_run(
                self.experiment_id(), record.begun_ms, tags, record.title or record.name
            )
        elif is_deleted(run):
            return run
        # The recipe goes to a run that an evaluation on another machine has created, too
        send_params(self.client, run, record.params, adds=record.kind == "training")
        return run

    def _find_run(self, record: Record) -> Run | None:
        if record.key == "model_sha256":
            return next(iter(self.runs_of_model(record.value)), None)
        if runs := self.search_runs(equals(f"tags.`{record.key}`", record.value)):
            return runs[0]
        # An evaluation of the model on another machine may have created the run
        if (digest := record.tags.get("model_sha256")) and not record.group:
            runs = self.runs_of_model(digest)
            return next((run for run in runs if record.key not in run.data.tags), None)
        return None

    def _group_tags(self, record: Record) -> dict[str, str]:
        """Return the tag by which MLflow's pages list a run below its group's, if MLflow has that run."""
        runs = self.search_runs(equals(f"tags.`{GROUP}`", record.group)) if record.group else []
        return {"mlflow.parentRunId": runs[0].info.run_id} if runs else {}

    def runs_of_model(self, digest: str, group: str | None = None) -> list[Run]:
        """Return the runs of a model, newest first, in a group, or outside of all groups. Both may have that model."""
        runs = self.search_runs(equals("tags.model_sha256", digest))
        groups = [run.data.tags.get(MEMBER, "").partition("/")[0] for run in runs]
        return [run for run, of_run in zip(runs, groups, strict=True) if of_run == (group or "")]

    def search_runs(self, filter_string: str, *, everywhere: bool = False) -> list[Run]:
        """Return the profile's runs, newest first, deleted ones last.

        everywhere: also those of all other experiments, after them.
        """
        own = [each.experiment_id for each in self._experiments()]
        others = self._all_experiments() if everywhere else ()
        other_ids = [each.experiment_id for each in others if each.experiment_id not in own]
        runs: list[Run] = []
        for ids in filter(None, (own, other_ids)):
            runs += self.client.search_runs(
                ids, filter_string, ViewType.ALL, order_by=["attributes.start_time DESC"], max_results=100
            )
        return sorted(runs, key=is_deleted)

    def _experiments(self) -> list[Experiment]:
        """Return the profile's experiments, the one with its name first: people rename an experiment, its tag stays."""
        found: dict[str, Experiment] = {}
        for field, value in (("name", self.experiment), (f"tags.`{PROFILE}`", self.profile)):
            experiments = self.client.search_experiments(ViewType.ALL, filter_string=equals(field, value))
            found |= {each.experiment_id: each for each in experiments if each.experiment_id not in found}
        return list(found.values())

    def _all_experiments(self) -> Iterator[Experiment]:
        token = None
        while True:
            page = self.client.search_experiments(ViewType.ALL, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def find_experiment(self) -> Experiment | None:
        """Return the profile's experiment, also a deleted one."""
        return next(iter(self._experiments()), None)

    def experiment_id(self) -> str:
        """Return the id of the experiment; create it if it is missing. Raises ResultError if it was deleted."""
        experiment = self.find_experiment()
        if experiment and experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise ResultError(
                f"the experiment {experiment.name} was deleted in MLflow; restore it: "
                f"{self.shell(f'experiments restore --experiment-id {experiment.experiment_id}')}"
            )
        if experiment:
            if PROFILE not in experiment.tags:
                self.client.set_experiment_tag(experiment.experiment_id, PROFILE, self.profile)
            return experiment.experiment_id
        # A server has its own artifact store; a database would put artifacts into the working directory
        artifacts = None if self.is_server else (self.root / ARTIFACTS / self.experiment).as_uri()
        return self.client.create_experiment(self.experiment, artifacts, {PROFILE: self.profile})

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    def shell(self, command: str) -> str:
        """Return the line for a shell that gives a command to this server's `mlflow`."""
        return f"MLFLOW_TRACKING_URI={shlex.quote(without_passwords(self.address))} mlflow {command}"


def equals(field: str, value: str) -> str:
    """Return MLflow's filter for runs or experiments whose tag or attribute has this value.

    A filter has no way to escape a quote: a value with one kind stands in the other, and of both, " is a wildcard.
    """
    if "'" not in value:
        return f"{field} = '{value}'"
    operator, pattern = ("LIKE", value.replace('"', "_")) if '"' in value else ("=", value)
    return f'{field} {operator} "{pattern}"'


def is_deleted(run: Run) -> bool:
    return run.info.lifecycle_stage == LifecycleStage.DELETED


def _commit_tags(root: Path) -> dict[str, str]:
    commit = git.find_commit(root)
    # MLflow's pages show the first as the run's version
    return {"mlflow.source.git.commit": commit.sha, **commit.tags()} if commit else {}
