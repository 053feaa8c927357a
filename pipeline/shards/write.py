"""Writes shards, byte for byte the same each time, on one process or many, and goes on where it was stopped.

Which sample lies in which shard follows from keys and seed alone. Every finished shard leaves a record, a manifest of
its own, in a working folder; a record is kept as long as nothing that decides its shard's bytes has changed. The whole
becomes visible at the end, at once.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError, ShardError
from pipeline.progress import bar
from pipeline.shards import manifest
from pipeline.shards.hashed_tar import HashedTar
from pipeline.shards.manifest import LOCATION, MANIFEST, MEMBERS
from pipeline.shards.sample import Sample
from pipeline.storage import S3, Folder

NAMED = 8  # of many refused images, how many are named
CODERS = ("pillow", "pyarrow")  # another version of them may write other bytes

Part = tuple[int, Sequence[str]]  # a shard's number, and its keys in order
Run = Callable[[Callable[[Part], int], Iterable[Part]], Iterator[int]]


@dataclass(frozen=True)
class Plan:
    """What the shards of a split share; sent to whoever writes one of them, so its paths are absolute."""

    load: Callable[[str], Sample]
    stamp: Callable[[str], str]
    split: str
    classes: tuple[str, ...]
    work: Path
    staging: str  # where finished shards wait for the others
    root: str  # what reasons leave out of paths, so that a manifest does not depend on where the project lies
    code: str

    def record(self, number: int) -> Path:
        return self.work / "records" / f"{number:06d}.parquet"

    def digest(self, keys: Sequence[str]) -> str:
        """Of everything that decides a shard's bytes."""
        decides = [
            self.split,
            self.classes,
            self.staging,
            self.code,
            [(key, self.stamp(key)) for key in keys],
        ]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def write_shards(
    keys: Sequence[str],
    load: Callable[[str], Sample],
    dest: Path | str,
    *,
    split: str,
    classes: Sequence[str],
    samples_per_shard: int,
    seed: int,
    stamp: Callable[[str], str] = str,
    allow_partial: bool = False,
    work: Path | None = None,
    run: Run = map,
) -> None:
    """Writes the samples of `keys`, in an order shuffled by `seed`, to dest/shard-000000.tar ... and the manifest.

    load: gives the sample of a key; DatasetError refuses it.   dest: a path or s3://bucket/prefix.
    stamp: gives what changes when a key's files do.   allow_partial: leave refused images out, and record them, instead
    of refusing all.   work: a folder for unfinished shards, on dest's disk; beside dest if None.
    run: like map, in any order; where the work is done. The same keys, samples and seed give the same bytes.
    """
    assert len(set(keys)) == len(keys) > 0, len(keys)
    if str(dest).startswith(S3):
        assert work is not None, "a bucket has no place for work"
        staging = f"{str(dest).rstrip('/')}.partial"
    else:
        dest = Path(dest).absolute()
        work = work or dest.with_name(f".{dest.name}.sharding")
        staging = str(work.absolute() / "new")
    plan = Plan(
        load, stamp, split, tuple(classes), work.absolute(), staging, f"{os.getcwd()}/", _code_digest()
    )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(keys))
    keys = sorted(keys)
    ordered = [keys[i] for i in order]
    starts = range(0, len(ordered), samples_per_shard)
    parts = [(n, ordered[start : start + samples_per_shard]) for n, start in enumerate(starts)]
    with _explained(work), _only_one(work):
        for unfinished in work.glob("unfinished.*"):  # of a process that was killed
            shutil.rmtree(unfinished)
        with bar(len(ordered), f"shard {split}") as progress:
            for num_done in run(partial(finish_shard, plan), parts):
                progress.update(num_done)
        publish(plan, Folder(str(dest)), len(parts), allow_partial)
        shutil.rmtree(work)


def finish_shard(plan: Plan, part: Part) -> int:
    """Writes one shard and its record, unless both are there; how many keys that deals with."""
    number, keys = part
    digest = plan.digest(keys)
    if _is_finished(plan, number, digest):
        return len(keys)
    with (
        _explained(plan.work),
        tempfile.TemporaryDirectory(prefix="unfinished.", dir=plan.work) as scratch,
    ):
        path = Path(scratch, f"shard-{number:06d}.tar")
        with path.open("wb") as file:
            tar = HashedTar(file)
            rows, refused = _write_samples(plan, tar, path.name, keys)
            tar.finish()
        shards = []
        if rows:
            shards = [{"name": path.name, "bytes": tar.size, "sha256": tar.sha256.hexdigest()}]
            Folder(plan.staging).put(path, path.name)
        record = Path(scratch, plan.record(number).name)
        manifest.write(record, manifest.table_of(rows), _header(plan, shards, refused) | {"plan": digest})
        Folder(str(plan.record(number).parent)).put(record, record.name)
    return len(keys)


def _is_finished(plan: Plan, number: int, digest: str) -> bool:
    """Whether a shard and its record are there and whole, and would be written the same again."""
    try:
        header = _read_record(plan, number)[1]
        staging = Folder(plan.staging)
        return header["plan"] == digest and all(
            staging.sha256(shard["name"]) == shard["sha256"] for shard in header["shards"]
        )
    except ShardError:
        return False


def _read_record(plan: Plan, number: int) -> tuple[manifest.Table, dict[str, Any]]:
    path = plan.record(number)
    return manifest.parse(Folder(str(path.parent)).read(path.name), str(path))


def _write_samples(
    plan: Plan, tar: HashedTar, shard: str, keys: Sequence[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """(the manifest's rows, key and reason of each image that was refused)."""
    rows: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = []
    for key in keys:
        try:
            sample = plan.load(key)
        except DatasetError as error:
            refused.append((key, str(error).replace(plan.root, "")))
            continue
        height, width = sample.photo.size
        row = {"key": key, "split": plan.split, "shard": shard, "height": height, "width": width}
        row |= {"mode": sample.photo.mode, "pixel_sha256": sample.photo.pixel_sha256}
        row |= {"class_pixels": sample.counts[: len(plan.classes)]}
        row |= {"void_pixels": int(sample.counts[IGNORE_LABEL])}
        for kind, data in zip(MEMBERS, (sample.jpeg, sample.png), strict=True):
            row[f"{kind}_offset"], row[f"{kind}_size"] = tar.add(f"{key}.{kind}", data), len(data)
            row[f"{kind}_sha256"] = hashlib.sha256(data).digest()
        rows.append(row)
    return rows, refused


def publish(plan: Plan, dest: Folder, num_parts: int, allow_partial: bool) -> None:
    """Puts the finished shards under one manifest and in dest's place."""
    tables, shards, refused = [], [], []
    for number in range(num_parts):
        table, header = _read_record(plan, number)
        tables.append(table)
        shards += header["shards"]
        refused += header["refused"]
    if refused:
        _tell_refused(plan.split, refused, nothing_left=not shards, allow_partial=allow_partial)
    staging = Folder(plan.staging)
    for stale in staging.list().keys() - {shard["name"] for shard in shards}:  # of another plan
        staging.remove(stale)
    path = plan.work / MANIFEST
    manifest.write(path, manifest.joined(tables), _header(plan, shards, refused))
    staging.put(path, MANIFEST)
    staging.become(dest, last=MANIFEST)


def link_shards(location: str, folder: Path) -> None:
    """Leaves in `folder` what leads to shards elsewhere: their manifest, a change of which DVC sees, and the place."""
    building = folder.with_name(f".{folder.name}.link")
    with _explained(building):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        (building / MANIFEST).write_bytes(Folder(location).read(MANIFEST))
        (building / LOCATION).write_text(location, encoding="utf-8")
    Folder(str(building)).become(Folder(str(folder)), last=MANIFEST)


def _header(plan: Plan, shards: list[dict[str, Any]], refused: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "format": manifest.FORMAT,
        "split": plan.split,
        "classes": list(plan.classes),
        "shards": shards,
        "refused": refused,
    }


def _tell_refused(
    split: str, refused: Sequence[tuple[str, str]], nothing_left: bool, allow_partial: bool
) -> None:
    """Says which images cannot be used and why; DatasetError unless the others may do."""
    reasons = "".join(f"\n  {reason}" for _, reason in refused[:NAMED])
    more = f"\n  and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
    if allow_partial and not nothing_left:
        print(
            f"{split}: {len(refused)} images refused and left out (data.allow_partial):{reasons}{more}",
            flush=True,
        )
        return
    remedy = "mend or replace them" + (", or set data.allow_partial to leave them out" * (not nothing_left))
    raise DatasetError(f"{split}: {len(refused)} images cannot be used; {remedy}:{reasons}{more}")


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Makes the working folder, and waits until no other process writes in it. The system frees a killed one's lock."""
    path = work / "lock"
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process writes the same shards, waiting for it ({path})", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(
                os.fstat(file.fileno()), path.stat()
            ):  # not one just removed
                yield
                return


@contextmanager
def _explained(work: Path) -> Iterator[None]:
    """Turns a full disk and its like into one sentence."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ShardError(
            f"{work}: {reason}; finished shards are kept there: make room and run the same again"
        ) from error


def _code_digest() -> str:
    """Of the code that decides a shard's bytes: what another version wrote is not kept."""
    here = Path(__file__).parent
    digest = hashlib.sha256(repr([importlib.metadata.version(name) for name in CODERS]).encode())
    for path in [*sorted(here.glob("*.py")), *sorted((here.parent / "datasets").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
