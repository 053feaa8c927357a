"""What MLflow is to be told of one run, as files of the project: written first, sent afterwards, any number of times.

runs/<profile>/.tracking/<kind>-<name>-<key>/ holds record.json; `sent`, which says who has all of it; in copies/ what
may be replaced before it is sent; and the curves of a run whose folder a later attempt has taken.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.errors import ResultError

KINDS = (
    "inspection",
    "training",
    "evaluation",
)  # in this order: an evaluation belongs to the run of a training


@dataclass(frozen=True)
class Kept:
    """A file to send. path: below the root.   place: the folder among the run's artifacts, "" for none."""

    path: str
    sha256: str
    place: str = ""


@dataclass(frozen=True)
class Record:
    """One part of a run: its training, an evaluation, or the inspection of data.

    key, value: the tag that finds the run; if there is none, one is made, with params and `origin` among its tags.
    datasets: digest by split.   curves: path below the root.   begun_ms, ended_ms: since the epoch, None: not yet.
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
    files: Sequence[Kept] = ()
    curves: str | None = None
    model: Kept | None = None
    begun_ms: int = field(default_factory=lambda: now_ms())
    ended_ms: int | None = None

    @property
    def digest(self) -> str:
        return sha256_of_text(json.dumps(asdict(self), sort_keys=True))

    @property
    def logged_tag(self) -> str:
        """The tag by which a run says that it has all of a record."""
        return f"fcn.logged.{self.kind}"

    def ended(self, **values: Any) -> "Record":
        return replace(self, ended_ms=now_ms(), **values)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Shelf:
    """A profile's records.   root: the project's, absolute."""

    def __init__(self, root: Path, profile: str):
        self.root, self.profile = root, profile
        self.folder = root / paths.RUNS / profile / ".tracking"

    def place(self, record: Record) -> Path:
        key = sha256_of_text(f"{record.key}={record.value}")[:12]
        return self.folder / f"{record.kind}-{record.name}-{key}"

    def put(self, record: Record) -> None:
        """Writes a record, whole or not at all, in place of the one of the same run and kind."""
        place = self.place(record)
        place.mkdir(parents=True, exist_ok=True)
        partial = place / ".record.json.partial"
        partial.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        partial.replace(place / "record.json")

    def begin(self, record: Record) -> Record:
        """The record of this run and kind that is there, else this one, which is then there."""
        try:
            return _read(self.place(record) / "record.json")
        except ResultError:  # none, or no whole one: MLflow knows the run by its tag
            self.put(record)
            return record

    def all(self) -> tuple[list[Record], list[str]]:
        """The records in the order to send them, and for each that is damaged a sentence."""
        records, damaged = [], []
        for path in self.folder.glob("*/record.json"):
            try:
                records.append(_read(path))
            except ResultError as error:
                damaged.append(str(error))
        return sorted(records, key=lambda one: (KINDS.index(one.kind), one.begun_ms)), damaged

    def is_sent(self, record: Record, to: str) -> bool:
        sent = self.place(record) / "sent"
        return sent.exists() and sent.read_text(encoding="utf-8") == f"{to} {record.digest}"

    def mark_sent(self, record: Record, to: str) -> None:
        place = self.place(record)
        shutil.rmtree(place / "copies", ignore_errors=True)
        (place / "sent").write_text(f"{to} {record.digest}", encoding="utf-8")

    def described(self, path: Path, place: str = "") -> Kept:
        path = path.absolute()
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return Kept(str(name), sha256_of(path), place)

    def locate(self, record: Record, kept: Kept) -> Path | None:
        """Where a file's content is still what it was when it was recorded."""
        for path in (self._copy(record, kept), self.root / kept.path):
            if path.is_file() and sha256_of(path) == kept.sha256:
                return path
        return None

    def curves(self, record: Record) -> Path | None:
        if record.curves is None:
            return None
        own = self.place(record) / Path(record.curves).name  # of an attempt whose place another has taken
        return own if own.exists() else self.root / record.curves

    def keep_files(self, record: Record) -> None:
        """Copies what a record sends, but for a model, so that it is there when its places hold something else."""
        for kept in record.files:
            if path := self.locate(record, kept):
                _copy(path, self._copy(record, kept))

    def keep_curves(self, folder: Path) -> None:
        """Copies the curves of a run whose folder is about to be emptied."""
        for record in self.all()[0]:
            path = self.curves(record)
            if path and path.parent == folder and path.exists():
                _copy(path, self.place(record) / path.name)

    def _copy(self, record: Record, kept: Kept) -> Path:
        return self.place(record) / "copies" / kept.sha256[:16] / Path(kept.path).name

    @contextmanager
    def locked(self, record: Record) -> Iterator[None]:
        """One process at a time sends a record, or two would make two runs of it."""
        place = self.place(record)
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield


def _copy(path: Path, dest: Path) -> None:
    if path != dest:
        dest.parent.mkdir(parents=True, exist_ok=True)
        partial = dest.with_name(f".{dest.name}.partial")
        shutil.copyfile(path, partial)
        partial.replace(dest)


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Record:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["files"] = tuple(Kept(**kept) for kept in values["files"])
        values["model"] = values["model"] and Kept(**values["model"])
        return Record(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultError(f"{path} cannot be read ({error}); remove {path.parent}") from error
