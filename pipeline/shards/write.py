"""Write a split as shards: the same bytes each time, by one process or many, resumed after a stop.

Keys, seed and samples_per_shard decide which sample lies in which shard. Every finished shard has a record, its own
manifest, in a working folder. A record is valid until something that decides its shard's bytes changes. The finished
split replaces an older one at once.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from webdataset.writer import TarWriter

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError, ShardError, UserError
from pipeline.files import NUM_NAMED, code_digest, lock, replace_folder, whole, whole_folder, write_text
from pipeline.progress import bar
from pipeline.shards import manifest
from pipeline.shards.manifest import LABEL, LOCATION, MANIFEST, MEMBERS, PHOTO
from pipeline.shards.sample import Sample
from pipeline.storage import S3, Folder

# The shards' bytes depend on the versions of these folders and packages
CODE = ("pipeline/shards", "pipeline/datasets")
PACKAGES = ("pillow", "pyarrow", "webdataset")

ShardKeys = tuple[int, Sequence[str]]  # a shard's number, and its keys in order
MapFunction = Callable[[Callable[[ShardKeys], int], Iterable[ShardKeys]], Iterator[int]]


@dataclass(frozen=True)
class Plan:
    """Everything that the shards of a split share. It is sent to other processes, so its paths are absolute.

    load: returns the sample of a key.
    stamp: returns a text that changes when a key's source files do.
    work: the folder of records and unfinished shards.
    staging: the folder, a path or s3://..., where finished shards wait until the split is complete.
    root: a prefix removed from paths in refusal messages, so that a manifest does not depend on the project's folder.
    code: digest of the code that decides a shard's bytes.
    """

    load: Callable[[str], Sample]
    stamp: Callable[[str], str]
    split: str
    classes: tuple[str, ...]
    work: Path
    staging: str
    root: str
    code: str

    def record(self, number: int) -> Path:
        return self.work / "records" / f"{number:06d}.parquet"

    def digest(self, keys: Sequence[str]) -> str:
        """Return the digest of everything that decides a shard's bytes."""
        stamps = [(key, self.stamp(key)) for key in keys]
        digest_inputs = [self.split, self.classes, self.staging, self.code, stamps]
        return hashlib.sha256(json.dumps(digest_inputs).encode()).hexdigest()


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
    about: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    work: Path | None = None,
    run: MapFunction = map,
) -> None:
    """Write dest/shard-000000.tar ... and the manifest. The same keys, samples and seed give the same bytes.

    load: returns the sample of a key; a DatasetError refuses the key.
    dest: a path or s3://bucket/prefix.
    seed: shuffles the keys.
    stamp: returns a text that changes when a key's source files do.
    allow_partial: leave refused keys out and record them, instead of refusing the split.
    about: for the manifest's header: `sources`, by key the user's own name of a photo, where it says more than the key;
        `map`, by class of the user's masks the class that it became.
    work: a folder for unfinished shards, on dest's disk; beside dest if None.
    run: like map, but results may come in any order; it decides which processes do the work.
    """
    assert len(set(keys)) == len(keys) > 0, len(keys)
    if str(dest).startswith(S3):
        assert work is not None, "shards in a bucket need a working folder on this machine"
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
    try:
        with lock(work.with_name(f"{work.name}.lock"), "writes the same shards"):
            for partial_tar in work.glob(".shard-*"):  # of a process that was killed
                partial_tar.unlink()
            with bar(len(ordered), f"shard {split}") as progress:
                for num_done in run(partial(finish_shard, plan), parts):
                    progress.update(num_done)
            publish(plan, Folder(str(dest)), len(parts), allow_partial, about)
            shutil.rmtree(work)
    except DatasetError:
        raise
    except (OSError, UserError) as error:  # a full disk, a store that is down, ...
        raise ShardError(
            f"{error}; finished shards are kept in {work}: run the same command again to go on"
        ) from error


def finish_shard(plan: Plan, part: ShardKeys) -> int:
    """Write one shard and its record, unless both are valid already; return its number of keys."""
    number, keys = part
    digest = plan.digest(keys)
    if _is_finished(plan, number, digest):
        return len(keys)
    name = f"shard-{number:06d}.tar"
    finished = plan.work / name
    with whole(finished, is_shared=True) as file:
        tar = _HashingFile(file)
        rows, refused = _write_samples(plan, tar, name, keys)
    shards = []
    if rows:
        shards = [{"name": name, "bytes": tar.size, "sha256": tar.sha256.hexdigest()}]
        Folder(plan.staging).put(finished, name)
    table = manifest.table_of(rows)
    manifest.write(plan.record(number), table, _header(plan, table, shards, refused) | {"plan": digest})
    return len(keys)


def _is_finished(plan: Plan, number: int, digest: str) -> bool:
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


class _HashingFile:
    """A file to write to that counts and hashes the bytes, so that a finished shard is not read back.

    size: bytes so far.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.sha256.update(data)
        return self._file.write(data)


def _write_samples(
    plan: Plan, tar: _HashingFile, shard: str, keys: Sequence[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Write the samples' members; return the manifest's rows, and key and reason of each refused key."""
    rows: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = []
    # No time, owner or permission of this machine, so that the bytes are the same on every one
    options = {"encoder": False, "user": "", "group": "", "mode": 0o644, "mtime": 0}
    with TarWriter(tar, **options) as writer:  # pyright: ignore[reportArgumentType]  # it only calls write
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
            row |= {PHOTO: sample.photo.member}
            members = ((sample.photo.member, sample.image), (LABEL, sample.png))
            for kind, (member, data) in zip(MEMBERS, members, strict=True):
                writer.write({"__key__": key, member: data})
                padded_size = len(data) + -len(data) % tarfile.BLOCKSIZE
                row[f"{kind}_offset"] = writer.tarstream.offset - padded_size
                row[f"{kind}_size"] = len(data)
                row[f"{kind}_sha256"] = hashlib.sha256(data).digest()
            rows.append(row)
    return rows, refused


def publish(
    plan: Plan, dest: Folder, num_parts: int, allow_partial: bool, about: Mapping[str, Mapping[str, str]]
) -> None:
    """Join the records to one manifest and replace `dest` by the finished shards."""
    tables, shards, refused = [], [], []
    for number in range(num_parts):
        table, header = _read_record(plan, number)
        tables.append(table)
        shards += header["shards"]
        refused += header["refused"]
    if refused:
        _report_refused(plan.split, refused, allow_partial=allow_partial, is_empty=not shards)
    staging = Folder(plan.staging)
    for stale in staging.list().keys() - {shard["name"] for shard in shards}:  # of another plan
        staging.remove(stale)
    path = plan.work / MANIFEST
    table = manifest.joined(tables)
    sources = about.get("sources", {})
    named = {key: sources[key] for key in table["key"].to_pylist() if key in sources}
    recorded = {name: value for name, value in (dict(about) | {"sources": named}).items() if value}
    header = _header(plan, table, shards, refused) | recorded
    manifest.write(path, table, header)
    staging.put(path, MANIFEST)
    if dest.is_remote:
        staging.move_to(dest, last=MANIFEST)
    else:
        replace_folder(Path(plan.staging), Path(dest.where))


def link_shards(location: str, folder: Path) -> None:
    """Write a folder that leads to shards elsewhere: a copy of their manifest, which DVC tracks, and the location."""
    content = Folder(location).read(MANIFEST)
    with whole_folder(folder) as building:
        with whole(building / MANIFEST) as file:
            file.write(content)
        write_text(building / LOCATION, location)


def _header(
    plan: Plan, table: manifest.Table, shards: list[dict[str, Any]], refused: list[tuple[str, str]]
) -> dict[str, Any]:
    return {
        "format": manifest.format_of(table),
        "split": plan.split,
        "classes": list(plan.classes),
        "shards": shards,
        "refused": refused,
    }


def _report_refused(
    split: str, refused: Sequence[tuple[str, str]], *, allow_partial: bool, is_empty: bool
) -> None:
    """Print the refused images where they may be left out, else raise DatasetError with the first reasons."""
    reasons = "".join(f"\n  {reason}" for _, reason in refused[:NUM_NAMED])
    reasons += "\n  ..." * (len(refused) > NUM_NAMED)
    if allow_partial and not is_empty:
        print(f"{split}: {len(refused)} images left out (data.allow_partial):{reasons}", flush=True)
        return
    remedy = "correct or replace them" + ", or set data.allow_partial to leave them out" * (not is_empty)
    raise DatasetError(f"{split}: {len(refused)} images cannot be used; {remedy}:{reasons}")


def _code_digest() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return f"{code_digest(Path(__file__).parents[2], CODE)} {versions}"
