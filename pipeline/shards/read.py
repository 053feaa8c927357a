"""WebDataset tars with a Parquet manifest, read from any sample on: in a folder of this machine, or from S3.

A shard holds <key>.jpg and <key>.png for each sample, one after the other. manifest.parquet has a row a sample, in
the shards' order, and in its header what every shard must weigh and hash to. pipeline/shards/write.py writes them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ShardError
from pipeline.shards import manifest
from pipeline.shards.manifest import LOCATION, MANIFEST, MEMBERS, Table
from pipeline.shards.verify import damaged_samples, find_damage
from pipeline.storage import Folder

REMEDY = "run `dvc repro -f shard` to write it again"


@dataclass(frozen=True)
class Shards:
    """Verified shards: the manifest in memory, the samples a read away. Safe to use after a fork.

    folder: where the shards lie, a path or s3://bucket/prefix.
    """

    folder: Path | str
    table: Table
    header: dict

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @cached_property
    def keys(self) -> list[str]:
        """All of them in the shards' order; for one, `key` makes no list."""
        return self.table["key"].to_pylist()

    def key(self, index: int) -> str:
        return self.table["key"][index].as_py()

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def class_pixels(self) -> torch.Tensor:
        """(num_classes,) int64: how many pixels of all labels are of each class."""
        counts = self.table["class_pixels"].combine_chunks().flatten()
        return torch.from_numpy(counts.to_numpy().reshape(len(self), len(self.classes)).sum(0))

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest's content, and so of every image and label in it."""
        shards = [(shard["name"], shard["sha256"]) for shard in self.header["shards"]]
        return hashlib.sha256(json.dumps([self.classes, shards]).encode()).hexdigest()

    def read(self, index: int) -> tuple[memoryview, memoryview]:
        """(jpg, png) bytes of sample `index`, read at once; ShardError if they are not those that were written."""
        row = {name: column[index].as_py() for name, column in self._places.items()}
        folder = Folder(str(self.folder))
        start = min(row[f"{kind}_offset"] for kind in MEMBERS)
        end = max(row[f"{kind}_offset"] + row[f"{kind}_size"] for kind in MEMBERS)
        try:
            # One copy, which torch may take for a tensor's memory; the two files are parts of it
            data = memoryview(bytearray(folder.read(row["shard"], start, end - start)))
        except ShardError as error:
            raise ShardError(f"{error}; {REMEDY}") from error
        parts = []
        for kind in MEMBERS:
            offset = row[f"{kind}_offset"] - start
            part = data[offset : offset + row[f"{kind}_size"]]
            if hashlib.sha256(part).digest() != row[f"{kind}_sha256"]:
                name = f"{folder.name(row['shard'])}: {self.key(index)}.{kind}"
                raise ShardError(f"{name} is not what the manifest recorded; {REMEDY}")
            parts.append(part)
        return parts[0], parts[1]

    @cached_property
    def _places(self) -> dict[str, Any]:
        """The columns that say where samples lie, each in one piece: a value of it is found ten times as fast."""
        names = ["shard"] + [f"{kind}_{what}" for kind in MEMBERS for what in ("offset", "size", "sha256")]
        return {name: self.table[name].combine_chunks() for name in names}


def open_shards(
    where: Path | str, *, split: str | None = None, cache: Path | None = None, anew: bool = False
) -> Shards:
    """Opens a folder of shards, checking that every one is there with its size and sha256; ShardError if not.

    where: what write_shards made, a path or s3://bucket/prefix, or the folder that link_shards left in its place.
    split: what it must hold, any if None.   cache: a folder that keeps which shards were found whole, so that they
    are read once and not at every start; `anew`: read them all whatever it keeps.
    """
    opened = _opened(where)
    if split is not None and opened.header["split"] != split:
        found = opened.header["split"]
        raise ShardError(f"{where} holds the split {found!r}, expected {split!r}; {REMEDY}")
    for damage in find_damage(Folder(str(opened.folder)), opened.header, cache, anew):
        raise ShardError(f"{damage.what}; {REMEDY}")
    return opened


def all_damage(where: Path | str) -> Iterator[str]:
    """A sentence for everything that is wrong with a folder of shards, each byte of which is read; none if all is well.

    UserError if there is no such folder.
    """
    if not Folder(str(where)).list():
        raise ShardError(f"{where}: no files there; give the folder of one split, with its {MANIFEST}")
    try:
        opened = _opened(where)
    except ShardError as error:
        yield str(error)
        return
    folder = Folder(str(opened.folder))
    for damage in find_damage(folder, opened.header, None, anew=True):
        yield damage.what
        if damage.shard:
            yield f"  {damaged_samples(folder, opened.table, damage.shard)}"


def _opened(where: Path | str) -> Shards:
    """The manifest read and checked, the shards not yet."""
    folder = Folder(str(where))
    there = folder.list()
    if MANIFEST not in there:
        raise ShardError(f"{folder.name(MANIFEST)} is missing; run `dvc repro shard` first")
    content = folder.read(MANIFEST)
    try:
        table, header = manifest.parse(content, folder.name(MANIFEST))
    except ShardError as error:
        raise ShardError(f"{error}; {REMEDY}") from error
    if LOCATION not in there:
        return Shards(where, table, header)
    location = Folder(folder.read(LOCATION).decode("utf-8", "replace"))
    if location.read(MANIFEST) != content:
        raise ShardError(f"{location.where} holds other shards than {where} speaks of; {REMEDY}")
    return Shards(location.where if location.is_remote else Path(location.where), table, header)
