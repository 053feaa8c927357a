"""Shards opened and verified, and read starting at any sample, in a folder of this machine or in a store.

A store's shards are read by blocks through the node's cache (pipeline/cache), a local folder's directly.

A shard is a WebDataset tar with <key>.jpg and <key>.png of each sample, one after the other; a photo of another format
than JPEG is <key>.image.png. manifest.parquet has one row per sample, in the shards' order, and in its header the size
and sha256 of every shard. shards/write.py writes both.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.client import Blocks, NodeCache, Plan
from pipeline.errors import CheckpointError, ShardError
from pipeline.progress import bytes_bar
from pipeline.shards import manifest
from pipeline.shards.blocks import Layout
from pipeline.shards.manifest import LOCATION, MANIFEST, MEMBERS, PHOTO, Table
from pipeline.shards.verify import damaged_samples, find_damage
from pipeline.storage import Folder

REMEDY = "run `dvc repro -f shard` to write it again"
REMEDY_FOREIGN = "restore the tar, or run `fcn shards index` again"  # of anyone's tars, see foreign.py


@dataclass(frozen=True)
class Shards:
    """The shards of a split: the manifest is in memory, samples are read when needed. It may be used after a fork.

    folder: where the shards lie, a path or s3://bucket/prefix.
    table: one row per sample, as manifest.SCHEMA or manifest.SCHEMA_WITH_PNG.
    header: the manifest's header.
    node_cache: the cache that a store's blocks are read through.
    """

    folder: Path | str
    table: Table
    header: dict
    node_cache: NodeCache = field(default_factory=NodeCache)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.folder, self.table, self.header, self.node_cache)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @cached_property
    def keys(self) -> list[str]:
        """All keys, in the shards' order."""
        return self.table["key"].to_pylist()

    @property
    def remedy(self) -> str:
        """What to do about a damaged shard."""
        return REMEDY_FOREIGN if "members" in self.header else REMEDY

    def name_of(self, key: str) -> str:
        """Return the user's own name of a sample's photo; the key if it says as much."""
        return self.header.get("sources", {}).get(key, key)

    def require_classes(self, names: Sequence[str], owner: object) -> None:
        """Raise CheckpointError unless these classes are those of the labels, in their order.

        names: the classes of a net or of other shards.
        owner: of the names, for the message.
        """
        for number, (theirs, ours) in enumerate(zip_longest(names, self.classes, fillvalue="missing")):
            if theirs != ours:
                raise CheckpointError(
                    f"class {number} of {owner} is {theirs}, in the labels of {self.folder} it is {ours} "
                    f"({len(names)} and {len(self.classes)} classes); both need the same names in the same order. "
                    "Only train.start matches classes by name"
                )

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def sizes(self) -> NDArray[np.integer]:
        """(num_samples, 2) height and width of the photos."""
        return np.stack([self.table[side].to_numpy() for side in ("height", "width")], axis=1)

    @property
    def class_pixels(self) -> NDArray[np.int64]:
        """The pixels of each class in all labels, (num_classes,) int64."""
        counts = self.table["class_pixels"].combine_chunks().flatten().to_numpy()
        return counts.reshape(len(self), len(self.classes)).sum(0)

    @cached_property
    def digest(self) -> str:
        """The sha256 of classes and shards, and so of every photo and label in them."""
        shards = [(shard["name"], shard["sha256"]) for shard in self.header["shards"]]
        return hashlib.sha256(json.dumps([self.classes, shards]).encode()).hexdigest()

    def read(self, index: int) -> tuple[memoryview, memoryview]:
        """Return the bytes of a sample's photo and label; ShardError if they differ from the manifest."""
        row = {name: column[index].as_py() for name, column in self._columns.items()}
        start = min(row[f"{kind}_offset"] for kind in MEMBERS)
        end = max(row[f"{kind}_offset"] + row[f"{kind}_size"] for kind in MEMBERS)
        # One copy, which torch may use as a tensor's memory; both members are views of it
        data = memoryview(bytearray(self._bytes(index, row["shard"], start, end - start)))
        members, damaged = self._members(data, row, start)
        if damaged and self.blocks:
            self.blocks.drop(self.layout.block_of[index])
            data = memoryview(bytearray(self._bytes(index, row["shard"], start, end - start)))
            members, damaged = self._members(data, row, start)
        if damaged:
            name = f"{Folder(str(self.folder)).name(row['shard'])}: {self.keys[index]}.{damaged}"
            raise ShardError(f"{name} differs from the manifest; {self.remedy}")
        return members[0], members[1]

    def _bytes(self, index: int, shard: str, start: int, size: int) -> bytes:
        if self.blocks:
            return self.blocks.read(int(self.layout.block_of[index]), start, size)
        try:
            return Folder(str(self.folder)).read(shard, start, size)
        except ShardError as error:
            raise ShardError(f"{error}; {self.remedy}") from error

    def _members(
        self, data: memoryview, row: dict[str, Any], start: int
    ) -> tuple[list[memoryview], str | None]:
        """Return a sample's photo and label, and which of them differs from the manifest, if one does."""
        members = []
        for kind in MEMBERS:
            offset = row[f"{kind}_offset"] - start
            member = data[offset : offset + row[f"{kind}_size"]]
            if hashlib.sha256(member).digest() != row[f"{kind}_sha256"]:
                return [], manifest.members_of(row, self.header)[kind]
            members.append(member)
        return members, None

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.table)

    @cached_property
    def blocks(self) -> Blocks | None:
        """The blocks on this node; None for a local folder."""
        if not Folder(str(self.folder)).is_remote:
            return None
        return Blocks(self.node_cache, self.layout.index(str(self.folder)))

    @contextmanager
    def ahead(self, chunks: Iterator[NDArray[np.integer]], in_use: float = 0) -> Iterator[Callable[[], None]]:
        """Have the blocks of samples to come fetched ahead; yield a function to call when a turn is over.

        chunks: yields (T, K) indices of the samples of T turns.
        in_use: blocks that must be in the cache at a time; infinity for all.

        Raises UserError if they do not fit.
        """
        if not self.blocks:
            yield lambda: None
            return
        self.blocks.require_room(in_use)
        with closing(Plan(self.blocks, (self.layout.block_of[chunk] for chunk in chunks))) as plan:
            yield plan.advance

    @contextmanager
    def threads(self, number: int) -> Iterator[ThreadPoolExecutor]:
        """Yield threads that read samples. When the block ends early, such as by Ctrl-C, they wait for no store."""
        threads = ThreadPoolExecutor(number)
        try:
            yield threads
        except BaseException:
            # Cancel queued reads before the interrupt; otherwise an interrupted thread starts one and waits again
            threads.shutdown(wait=False, cancel_futures=True)
            if self.blocks:
                self.blocks.interrupt()
            raise
        finally:
            threads.shutdown(cancel_futures=True)

    @cached_property
    def _columns(self) -> dict[str, Any]:
        """The columns that locate samples, each in one chunk, where a value is found ten times as fast."""
        names = ["shard"] + [f"{kind}_{what}" for kind in MEMBERS for what in ("offset", "size", "sha256")]
        names += [PHOTO] if PHOTO in self.table.schema.names else []
        return {name: self.table[name].combine_chunks() for name in names}


def in_turn(indices: Sequence[int]) -> Iterator[NDArray[np.integer]]:
    """Return the chunks for Shards.ahead of samples that are read one by one."""
    return iter([np.array(indices)[:, None]] if len(indices) else [])


def open_shards(
    where: Path | str,
    *,
    split: str | None = None,
    cache: Path | None = None,
    verify_all: bool = False,
    node_cache: NodeCache | None = None,
) -> Shards:
    """Open a folder of shards; ShardError unless every shard is there with its size and sha256.

    The sha256 of a store's samples are compared when their blocks arrive, so that nothing is read twice.

    where: a folder of write_shards, a path or a URL, or one of link_shards.
    split: the split that it must hold, any if None.
    cache: a folder that records which shards are intact, so that they are not read at every start.
    verify_all: read every shard, whatever the cache holds; a store's, too.
    node_cache: the cache that a store's blocks are read through; by default that of a profile without `run.cache`.
    """
    shards = _open(where)
    if node_cache:
        shards = replace(shards, node_cache=node_cache)
    if split is not None and shards.header["split"] != split:
        raise ShardError(
            f"{where} holds the split {shards.header['split']!r}, expected {split!r}; {shards.remedy}"
        )
    folder = Folder(str(shards.folder))
    hashes = not folder.is_remote or verify_all
    for damage in find_damage(folder, shards.header, cache, verify_all=verify_all, hashes=hashes):
        raise ShardError(f"{damage.message}; {shards.remedy}")
    return shards


def fetch_all(shards: Shards) -> int:
    """Bring all blocks of a store's shards to this node's cache; return the bytes that were not there yet."""
    blocks = shards.blocks
    if not blocks:
        raise ShardError(f"{shards.folder} is a folder of this machine; only a store's shards are fetched")
    blocks.require_room(inf)
    sizes = (blocks.index.end - blocks.index.start).tolist()
    missing = [number for number in range(len(sizes)) if not blocks.has(number)]
    # All blocks are in use in one turn, those there already, too: for blocks to come, only other splits make room
    with (
        bytes_bar(sum(sizes[number] for number in missing), "fetch") as progress,
        closing(Plan(blocks, iter([np.arange(len(sizes))[None]]))),
    ):
        for number in missing:
            blocks.fetch(number)
            progress.update(sizes[number])
    return sum(sizes[number] for number in missing)


def all_damage(where: Path | str) -> Iterator[str]:
    """Read every byte of a folder of shards and yield a line for each damage; ShardError if it has no files."""
    _require_split(where)
    if Folder(str(where)).can_list and not Folder(str(where)).list():
        raise ShardError(f"{where}: no files there; give the folder of one split, with its {MANIFEST}")
    try:
        shards = _open(where)
    except ShardError as error:
        yield str(error)
        return
    folder = Folder(str(shards.folder))
    for damage in find_damage(folder, shards.header):
        yield damage.message
        if damage.shard:
            yield f"  {damaged_samples(folder, shards.table, shards.header, damage.shard)}"


def _open(where: Path | str) -> Shards:
    """Return the shards with their manifest checked, not yet their bytes."""
    _require_split(where)
    folder = Folder(str(where))
    files = folder.list() if folder.can_list else {MANIFEST}
    if MANIFEST not in files:
        raise ShardError(
            f"{folder.name(MANIFEST)} is missing; run `dvc repro shard` first, or `fcn shards index` for tars of others"
        )
    content = folder.read(MANIFEST)
    try:
        table, header = manifest.parse(content, folder.name(MANIFEST))
    except ShardError as error:
        raise ShardError(f"{error}; {REMEDY}, or `fcn shards index` again for tars of others") from error
    if "where" in header:  # of anyone's tars, see foreign.py
        return Shards(header["where"], table, header)
    if LOCATION not in files:
        return Shards(where, table, header)
    location = Folder(folder.read(LOCATION).decode("utf-8", "replace"))
    if location.read(MANIFEST) != content:
        raise ShardError(f"{location.where} holds other shards than the manifest of {where} lists; {REMEDY}")
    return Shards(location.where if location.is_remote else Path(location.where), table, header)


def _require_split(where: Path | str) -> None:
    """Raise ShardError if a path is that of a file, or of a folder whose folders are the splits."""
    path = Path(where)
    if path.is_file():
        raise ShardError(f"{path} is a file; give the folder of one split, with its {MANIFEST}")
    if splits := sorted(str(file.parent) for file in path.glob(f"*/{MANIFEST}")):
        raise ShardError(f"{path} holds {len(splits)} splits; give one of them: {', '.join(splits)}")
