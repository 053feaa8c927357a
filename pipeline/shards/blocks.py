"""The blocks of a split: consecutive whole samples of one shard, derived from the manifest alone.

A store is read by blocks, and `train.order: blocks` shuffles them. A block has up to 8 MiB: a request of this size
takes longer to transfer than to begin. A small split has smaller ones, or it would have too few to shuffle.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import Table

from pipeline.cache.index import Index
from pipeline.shards.manifest import MEMBERS

MAX_BYTES = 2**23
MIN_BYTES = 3 * 2**18
NUM_BLOCKS = 512  # at least, down to blocks of MIN_BYTES


@dataclass(frozen=True)
class Layout:
    """Which samples lie in which block.

    table: the manifest's, its rows in the order of the shards.
    """

    table: Table

    @cached_property
    def _spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) the first byte of each sample's members in its shard, and the byte after the last."""
        offsets = np.stack([self.table[f"{kind}_offset"].to_numpy() for kind in MEMBERS])
        sizes = np.stack([self.table[f"{kind}_size"].to_numpy() for kind in MEMBERS])
        return offsets.min(0), (offsets + sizes).max(0)

    @cached_property
    def _shards(self) -> NDArray[np.int64]:
        """The first sample of each shard, and the number of samples."""
        codes = self.table["shard"].unify_dictionaries().combine_chunks().indices.to_numpy()
        return np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1], [True])))

    @cached_property
    def first_sample(self) -> NDArray[np.int64]:
        """(B + 1,) block b holds the samples first_sample[b] .. first_sample[b + 1] - 1."""
        starts, ends = self._spans
        limit = int(np.clip((ends - starts).sum() // NUM_BLOCKS, MIN_BYTES, MAX_BYTES))
        first = []
        for shard, next_shard in zip(self._shards[:-1].tolist(), self._shards[1:].tolist(), strict=True):
            row = shard
            while row < next_shard:
                first.append(row)
                fitting = np.searchsorted(ends[row:next_shard], starts[row] + limit, "right")
                row += max(1, int(fitting))
        return np.array([*first, len(self.table)])

    @cached_property
    def block_of(self) -> NDArray[np.int32]:
        """(N,) the block of each sample."""
        sizes = np.diff(self.first_sample)
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def index(self, where: str) -> Index:
        """Return what a node's cache must know of the blocks of the shards in a folder."""
        first, (starts, ends) = self.first_sample, self._spans
        names = self.table["shard"].unify_dictionaries().combine_chunks()
        kinds: dict[str, Any] = {
            what: np.stack([self.table[f"{kind}_{what}"].to_numpy() for kind in MEMBERS], 1).ravel()
            for what in ("offset", "size")
        }
        digests = [
            np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, 32)[
                chunk.offset : chunk.offset + len(chunk)
            ]
            for kind in MEMBERS
            for chunk in [self.table[f"{kind}_sha256"].combine_chunks()]
        ]
        return Index(
            where=np.array(where),
            files=np.array(names.dictionary.to_pylist()),
            file_of=names.indices.to_numpy()[first[:-1]].astype(np.int64),
            start=starts[first[:-1]],
            end=ends[first[1:] - 1],
            first_member=first * len(MEMBERS),
            member_start=kinds["offset"],
            member_size=kinds["size"],
            member_sha256=np.stack(digests, 1).reshape(-1, 32),
        )
