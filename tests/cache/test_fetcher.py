"""pipeline/cache/fetcher.py: which blocks are fetched and removed, from a store that is a folder of this machine."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.fetcher import Block, Client, Fetcher, cached_files
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
    index.write(fetcher.folder / index.key / INDEX)
    client = fetcher.open(index.key, limit)
    assert client
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


def wait_until(claim: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def plan(fetcher: Fetcher, client: Client, uses: list[tuple[int, int, int]], turn: int = 0) -> None:
    with fetcher.changed:
        client.extend(uses)
        client.turn = turn
        fetcher.changed.notify_all()


def on_disk(fetcher: Fetcher) -> set[tuple[str, int]]:
    return {(path.parent.name, int(path.stem)) for path, _ in cached_files(fetcher.folder)}


def test_two_runs_that_need_more_than_the_limit_together_stay_within_it(tmp_path: Path):
    fetcher = running(tmp_path / "cache")
    runs = [opened(fetcher, store(tmp_path / name, 8), 10 * SIZE) for name in ("one", "other")]
    for client, _ in runs:
        plan(fetcher, client, [(number, 0, FOREVER) for number in range(8)])
    for number in range(8):
        for client, want in runs:
            want(number)
            assert len(on_disk(fetcher)) <= 10, client.key


def test_a_late_prefetch_removes_no_block_in_use_and_a_reader_that_waits_gets_its_block(tmp_path: Path):
    fetcher, index = running(tmp_path / "cache"), store(tmp_path / "store", 4)
    client, want = opened(fetcher, index, 3 * SIZE)
    in_use = {(index.key, number) for number in range(3)}
    plan(fetcher, client, [*((number, 0, FOREVER) for number in range(3)), (3, 1, FOREVER)])
    wait_until(lambda: on_disk(fetcher) == in_use and not fetcher.in_flight)
    plan(fetcher, client, [], turn=5)
    time.sleep(0.3)
    assert on_disk(fetcher) == in_use
    want(3)
    assert (index.key, 3) in on_disk(fetcher)
    assert len(on_disk(fetcher)) <= 3


def test_a_prefetch_that_failed_is_not_repeated_until_a_reader_waits_for_its_block(tmp_path: Path):
    fetcher, index = running(tmp_path / "cache", connections=1), store(tmp_path / "store", 2)
    client, want = opened(fetcher, index, 10 * SIZE)
    (tmp_path / "store/a.tar").unlink()
    plan(fetcher, client, [(0, 0, 0), (1, 1, 1)])
    wait_until(lambda: len(fetcher.failed) == 2)
    failures = dict(fetcher.failed)
    time.sleep(0.3)
    assert fetcher.failed == failures
    with pytest.raises(ShardError, match=r"a\.tar"):
        want(0)


def test_fetchers_of_one_cache_have_folders_of_their_own_and_the_same_ones_the_next_time(tmp_path: Path):
    cache = tmp_path / "cache"
    first = running(cache)
    _, want = opened(first, index := store(tmp_path / "store", 4), 2 * SIZE)
    want(0)
    partial = first.folder / index.key / ".00000001.block.7"
    partial.write_bytes(b"half of a block")
    second = running(cache)
    assert partial.exists()
    _, want_of_second = opened(second, index, 2 * SIZE)
    for number in range(4):
        want_of_second(number)
    assert on_disk(first) == {(index.key, 0)}
    assert len(on_disk(second)) == 2
    first._lock.close()
    third = Fetcher(cache, 1, 0.5)
    assert (third.folder, third.sizes) == (first.folder, first.sizes)
    assert not partial.exists()


def test_the_folder_of_an_old_split_leaves_with_its_last_block(tmp_path: Path):
    fetcher = running(tmp_path / "cache")
    old, new = (store(tmp_path / name, 4) for name in ("old", "newer"))
    client, want = opened(fetcher, old, 4 * SIZE)
    for number in range(2):
        want(number)
    fetcher.close(client)
    _, want = opened(fetcher, new, 4 * SIZE)
    for number in range(3):
        want(number)
    assert on_disk(fetcher) == {(old.key, 1), *((new.key, number) for number in range(3))}
    want(3)
    assert {path.name for path in fetcher.folder.iterdir()} == {new.key, "lock"}
    _, want = opened(fetcher, old, 4 * SIZE)
    want(0)


def test_a_split_is_not_open_without_a_whole_index(tmp_path: Path):
    fetcher, index = running(tmp_path / "cache"), store(tmp_path / "store", 1)
    path = fetcher.folder / index.key / INDEX
    assert fetcher.open(index.key, SIZE) is None
    index.write(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert fetcher.open(index.key, SIZE) is None
    index.write(path)
    assert fetcher.open(index.key, SIZE)
