"""Records: what MLflow should hold of a run, as files that are written first and sent later, retried until it succeeds.

runs/<profile>/.tracking/<kind>-<name>-<hash>/ holds:

    record.json    the record
    sent           the server that has all of the record, and the record's digest
    copies/        the record's files until they are sent, because the next run of a stage replaces the originals
    curves.jsonl   the training curve, if a later attempt has taken over the run's folder
    lock           held by the process that sends the record
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import files, paths
from pipeline.errors import ResultError

# In the order of sending: a group's run is the parent of its members', and training creates a net's run
KINDS = ("inspection", "group", "training", "evaluation")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class RecordedFile:
    """A file to send.

    path: relative to the root if it lies below it, else absolute.
    sha256: of its content when it was recorded.
    folder: among the run's artifacts; "" is the top.
    """

    path: str
    sha256: str
    folder: str = ""


@dataclass(frozen=True)
class Record:
    """One part of an MLflow run: a net's training, its evaluation, the inspection of the data, or a group of runs.

    kind: one of KINDS.
    name: of the net, or "data".
    key, value: the tag that identifies the run. The run is created if it is missing.
    params: by dotted name; set when the run is created.
    origin: tags that are set when the run is created.
    datasets: digest by split.
    tags, metrics, files, model: the results, once the record has ended.
    curves: path of the training curve, relative to the root.
    title: the run's name when it is created; "": the same as `name`.
    begun_ms, ended_ms: milliseconds since the epoch; None while the record has not ended.
    group: the tag fcn.group of the run that is this one's parent in MLflow; None: it has none.
    """

    kind: str
    name: str
    key: str
    value: str
    params: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[RecordedFile] = ()
    curves: str | None = None
    model: RecordedFile | None = None
    title: str = ""
    begun_ms: int = field(default_factory=now_ms)
    ended_ms: int | None = None
    group: str | None = None

    @property
    def digest(self) -> str:
        return sha256_text(json.dumps(asdict(self), sort_keys=True))

    @property
    def sent_tag(self) -> str:
        """The tag that a run gets when it has all of the record. Its value is the digest."""
        return f"fcn.logged.{self.kind}"

    def ended(self, **results: Any) -> "Record":
        return replace(self, ended_ms=now_ms(), **results)


class RecordStore:
    """A profile's records on disk.

    root: the project's root, absolute.
    """

    def __init__(self, root: Path, profile: str):
        self.root = root
        self.folder = root / paths.RUNS / profile / ".tracking"

    def folder_of(self, record: Record) -> Path:
        key = sha256_text(f"{record.key}={record.value}")[:12]
        return self.folder / f"{record.kind}-{record.name}-{key}"

    def write(self, record: Record) -> None:
        """Write a record and copies of its files, except the model.

        An older record of the same run and kind is replaced.
        """
        for file in record.files:
            files.copy_file(self.root / file.path, self._copy_of(record, file))
        files.write_json(self.folder_of(record) / "record.json", asdict(record))

    def begin(self, record: Record) -> Record:
        """Return the record of this run and kind that is on disk; if there is none, write this one."""
        try:
            return _read(self.folder_of(record) / "record.json")
        except ResultError:  # missing or damaged; the tag still leads to the run in MLflow
            self.write(record)
            return record

    def read_all(self) -> tuple[list[Record], list[str]]:
        """Return the records in the order of sending, and one message for each damaged one."""
        records, damaged = [], []
        for path in self.folder.glob("*/record.json"):
            try:
                records.append(_read(path))
            except ResultError as error:
                damaged.append(str(error))
        return sorted(records, key=lambda record: (KINDS.index(record.kind), record.begun_ms)), damaged

    def is_sent(self, record: Record, server: str) -> bool:
        path = self.folder_of(record) / "sent"
        return path.exists() and path.read_text(encoding="utf-8") == f"{server} {record.digest}"

    def mark_sent(self, record: Record, server: str) -> None:
        folder = self.folder_of(record)
        shutil.rmtree(folder / "copies", ignore_errors=True)
        (folder / "sent").write_text(f"{server} {record.digest}", encoding="utf-8")

    def describe(self, path: Path, folder: str = "") -> RecordedFile:
        path = path.absolute()
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return RecordedFile(str(name), files.sha256_file(path), folder)

    def find(self, record: Record, file: RecordedFile) -> Path | None:
        """Return where the file still has its recorded content, or None."""
        places = [self._copy_of(record, file), self.root / file.path]
        if file == record.model:
            places.append(self.root / paths.model(self.folder.parent.name, record.name))
        for path in places:
            if path.is_file() and files.sha256_file(path) == file.sha256:
                return path
        return None

    def find_curves(self, record: Record) -> Path | None:
        if record.curves is None:
            return None
        copy = self.folder_of(record) / Path(record.curves).name
        return copy if copy.exists() else self.root / record.curves

    def keep_curves(self, run_folder: Path) -> None:
        """Copy the curves of a run whose folder is about to be emptied."""
        for record in self.read_all()[0]:
            path = self.find_curves(record)
            if path and path.parent == run_folder and path.exists():
                files.copy_file(path, self.folder_of(record) / path.name)

    def drop_kept_curves(self, record: Record) -> None:
        """Remove that copy: the run's folder is the record's again, and its curve starts again or goes on."""
        if record.curves is not None:
            (self.folder_of(record) / Path(record.curves).name).unlink(missing_ok=True)

    def lock(self, record: Record) -> AbstractContextManager[bool]:
        """Let one process at a time send a record, because two processes would create two runs."""
        return files.lock(self.folder_of(record) / "lock", f"sends {record.name} to MLflow")

    def _copy_of(self, record: Record, file: RecordedFile) -> Path:
        return self.folder_of(record) / "copies" / file.sha256[:16] / Path(file.path).name


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> Record:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["files"] = tuple(RecordedFile(**file) for file in values["files"])
        values["model"] = values["model"] and RecordedFile(**values["model"])
        if values["kind"] not in KINDS:
            raise ValueError(f"kind {values['kind']!r}, which this version does not know")
        return Record(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultError(f"{path} cannot be read ({error}); remove {path.parent}") from error
