"""pipeline/cache/fetcher.py: which blocks are fetched and removed, from a store that is a folder of this machine."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.fetcher import Block, Client, Fetcher
from pipeline.cache.index import INDEX, Index
from pipeline.errors import ShardError

SIZE = 1000  # bytes of a block
FOREVER = 100  # turns


def store(folder: Path, num_blocks: int) -> Index:
    """Write a file of blocks with one member each; return its index."""
    folder.mkdir(parents=True)
    data = np.random.default_rng(len(folder.name)).bytes(num_blocks * SIZE)
    (folder / "a.tar").write_bytes(data)
    start = np.arange(num_blocks) * SIZE
    digests = [hashlib.sha256(data[first : first + SIZE]).digest() for first in start.tolist()]
    return Index(
        where=np.array(str(folder)),
        files=np.array(["a.tar"]),
        file_of=np.zeros(num_blocks, np.int64),
        start=start,
        end=start + SIZE,
        first_member=np.arange(num_blocks + 1),
        member_start=start,
        member_size=np.full(num_blocks, SIZE),
        member_sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
    )


def running(cache: Path, connections: int = 2) -> Fetcher:
    fetcher = Fetcher(cache, connections, patience_s=0.5)
    threading.Thread(target=fetcher.run, daemon=True).start()
    return fetcher


def opened(fetcher: Fetcher, index: Index, limit: int) -> tuple[Client, Callable[[int], None]]:
    """Return a client, and the function by which its reader waits for a block."""
    path = fetcher.folder / index.key / INDEX
    if not path.exists():
        index.write(path)
    client = fetcher.open(index.key, limit)
    return client, lambda number: fetcher.want(Block(index.key, number))


def test_a_reader_gets_an_error_whatever_ends_a_fetch(tmp_path: Path):
    fetcher = running(tmp_path / "cache")
    _, want = opened(fetcher, store(tmp_path / "store", 2), 10 * SIZE)
    fetcher._downloader._pool.shutdown()  # so that a request raises RuntimeError, as one without a thread does
    for number in (0, 1):
        with pytest.raises(ShardError, match=rf"a\.tar bytes {number * SIZE}-"):
            want(number)
    assert not fetcher.in_flight
    assert fetcher.num_bytes == 0
