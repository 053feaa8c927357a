"""pipeline/cache and pipeline/shards/blocks.py: a store's samples read through a node's cache."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.client import NodeCache
from pipeline.cache.download import Downloader
from pipeline.cache.fetcher import cached_files
from pipeline.errors import ShardError, UserError
from pipeline.inspection.near_duplicates import thumbnails
from pipeline.loading.loader import Stream, loader
from pipeline.shards import blocks
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards, fetch_all, open_shards
from tests import s3_server, slow_link
from tests.noise import noise, shards_of
from tests.small_shards import files_in

NUM_SAMPLES = 60
SAMPLES_PER_BLOCK = 3


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    """Sixty samples, whose blocks have up to three of them."""
    keys = [f"{number:02d}" for number in range(NUM_SAMPLES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MIN_BYTES", 1536 * SAMPLES_PER_BLOCK + 1000)
        yield shards_of(tmp_path_factory.mktemp("noises") / "train", keys, noise)


@pytest.fixture(scope="module")
def link(local: Shards) -> Iterator[slow_link.Link]:
    """The way to a store that holds the samples at s3://shelf/train."""
    from pyarrow import fs

    with s3_server.s3_server() as url:
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        where = f"{url}/train".removeprefix("s3://")
        fs.copy_files(str(local.folder), where, fs.LocalFileSystem(), s3_server.storage.system("s3"))
        with slow_link.linked(port) as link, pytest.MonkeyPatch.context() as patch:
            s3_server.point_to(f"http://127.0.0.1:{link.port}", patch)
            yield link
            s3_server.forget()


pytestmark = pytest.mark.usefixtures("link")


def remote(cache: Path, **settings) -> Shards:
    return open_shards("s3://shelf/train", node_cache=NodeCache(str(cache), **settings))


def all_samples(shards: Shards) -> list[tuple[bytes, bytes]]:
    return [(bytes(photo), bytes(png)) for photo, png in map(shards.read, range(len(shards)))]


def cached_bytes(cache: Path) -> int:
    return sum(status.st_size for _, status in cached_files(cache))


# --- blocks


def test_blocks_are_consecutive_whole_samples_of_one_shard_up_to_a_size(local):
    first = local.layout.first_sample
    assert first[0] == 0
    assert first[-1] == NUM_SAMPLES
    assert (np.diff(first) > 0).all()
    index = local.layout.index("here")
    names = local.table["shard"].to_pylist()
    for number in range(len(index)):
        samples = range(first[number], first[number + 1])
        assert {names[sample] for sample in samples} == {index.files[index.file_of[number]]}
        assert index.end[number] - index.start[number] <= blocks.MIN_BYTES
        assert index.is_intact(
            number, files_in(local.folder)[names[samples[0]]][index.start[number] : index.end[number]]
        )
    assert (local.layout.block_of == np.searchsorted(first, np.arange(NUM_SAMPLES), "right") - 1).all()


# --- reading through the cache


def test_a_stores_samples_are_those_of_a_folder_with_one_request_a_block(local, link, tmp_path: Path):
    shards = remote(tmp_path)
    before = link.num_requests
    assert list(map(str, Dataset(shards).read_ahead(range(NUM_SAMPLES)))) == list(
        map(str, map(Dataset(local).__getitem__, range(NUM_SAMPLES)))
    )
    num_blocks, num_shards = len(shards.layout.first_sample) - 1, len(shards.header["shards"])
    assert num_blocks <= link.num_requests - before <= num_blocks + num_shards
    assert shards.blocks
    assert shards.blocks.reads.value == NUM_SAMPLES
    before = link.num_requests
    assert all_samples(shards) == all_samples(local)
    assert link.num_requests == before


@pytest.mark.parametrize("by_blocks", [False, True])
def test_loader_processes_give_the_batches_of_a_local_folder(local, tmp_path: Path, by_blocks):
    numbers = range(2, 20)
    expected = list(loader(Stream(local, 4, 5, by_blocks=by_blocks), numbers))
    given = list(loader(Stream(remote(tmp_path), 4, 5, by_blocks=by_blocks), numbers, num_workers=2))
    assert [batch.keys for batch in given] == [batch.keys for batch in expected]
    assert all((one.image == other.image).all() for one, other in zip(given, expected, strict=True))


def test_two_runs_share_the_blocks(local, link, tmp_path: Path):
    with get_context("fork").Pool(2) as pool:
        before = link.num_requests
        runs = pool.map(read_all, [tmp_path, tmp_path])
    assert runs == [all_samples(local)] * 2
    shards = remote(tmp_path)
    num_blocks, num_shards = len(shards.layout.first_sample) - 1, len(shards.header["shards"])
    openings = 3 * 4  # by each: two listings, the manifest's size and its bytes
    assert link.num_requests - before <= num_blocks + num_shards + openings


def read_all(cache: Path) -> list[tuple[bytes, bytes]]:
    return all_samples(remote(cache))


def test_a_block_damaged_in_the_cache_is_fetched_again(local, tmp_path: Path):
    shards = remote(tmp_path)
    expected = all_samples(shards)
    for number, path in enumerate(sorted(tmp_path.glob("*/*.block"))):
        path.write_bytes(bytes(path.stat().st_size) if number % 2 else path.read_bytes()[:100])
    assert all_samples(shards) == expected == all_samples(local)


def test_blocks_order_stays_within_a_small_cache_and_fetches_each_block_once_an_epoch(link, tmp_path: Path):
    shards = remote(tmp_path, gigabytes=1.0)
    assert shards.blocks
    limit = shards.blocks.index.num_bytes // 2
    shards = remote(tmp_path, gigabytes=limit / 1e9, connections=2)
    num_blocks = len(shards.layout.first_sample) - 1
    before, most = link.num_requests, 0
    for batch in loader(Stream(shards, 2, 5, by_blocks=True), range(NUM_SAMPLES), num_workers=1):
        assert len(batch.keys) == 2
        most = max(most, cached_bytes(tmp_path))
    assert most <= limit
    assert link.num_requests - before - len(shards.header["shards"]) <= 2 * num_blocks * 1.05


def test_a_random_order_of_samples_needs_room_for_all_of_them(tmp_path: Path):
    stream = Stream(remote(tmp_path, gigabytes=5e-5), 2, 5)
    with pytest.raises(UserError, match=r"run\.cache\.gigabytes .*train\.order"):
        next(loader(stream, range(3)))


def test_blocks_order_needs_room_for_the_blocks_in_use(tmp_path: Path):
    stream = Stream(remote(tmp_path, gigabytes=1e-6), 2, 5, by_blocks=True)
    with pytest.raises(UserError, match=r"run\.cache\.gigabytes"):
        next(loader(stream, range(3)))
    assert next(loader(Stream(remote(tmp_path, gigabytes=5e-5), 2, 5, by_blocks=True), range(3)))


def test_the_blocks_in_use_are_those_of_all_workers_on_a_node(local, tmp_path: Path):
    in_use = 4 * 4 / (len(local.layout.first_sample) - 1)  # of the split, by the four images of a step
    half = remote(tmp_path, gigabytes=local.layout.index("here").num_bytes * in_use * 0.6 / 1e9)
    workers = {"batch_size": 4, "seed": 5, "by_blocks": True, "world_size": 2}
    assert next(loader(Stream(half, **workers), range(3)))
    with pytest.raises(UserError, match=r"run\.cache\.gigabytes"):
        next(loader(Stream(half, **workers, workers_on_node=2), range(3)))


def test_a_split_is_fetched_ahead_of_a_run_and_then_needs_no_store(local, link, tmp_path: Path):
    shards = remote(tmp_path)
    assert fetch_all(shards) == shards.blocks.index.num_bytes
    assert fetch_all(shards) == 0
    link.is_down = True
    try:
        assert all_samples(shards) == all_samples(local)
    finally:
        link.is_down = False


def test_a_fetch_that_goes_on_keeps_its_first_blocks_and_removes_those_of_other_splits(
    local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gigabytes = 1.6 * local.layout.index("").num_bytes / 1e9
    shards, other = remote(tmp_path, gigabytes=gigabytes), remote(tmp_path, gigabytes=gigabytes)
    num_blocks = len(shards.blocks.index)
    for number in range(num_blocks // 2):  # a fetch that was stopped
        shards.blocks.fetch(number)
    monkeypatch.setattr(blocks, "MIN_BYTES", 2 * blocks.MIN_BYTES)  # other blocks are those of another split
    fetch_all(other)
    fetch_all(shards)
    assert all(shards.blocks.has(number) for number in range(num_blocks))
    assert cached_bytes(tmp_path) <= gigabytes * 1e9


# --- faults


def test_cut_and_stalled_answers_are_asked_for_again(local, link, tmp_path: Path):
    shards = remote(tmp_path)
    link.num_cuts, link.num_stalls, link.stall_s = 5, 2, 120.0
    begun_s = time.monotonic()
    assert all_samples(shards) == all_samples(local)
    assert time.monotonic() - begun_s < 50  # one that waited for a stalled request would take 60 s
    link.num_cuts = link.num_stalls = 0


def test_a_store_that_is_down_for_a_while_is_waited_for(local, link, tmp_path: Path):
    shards = remote(tmp_path)
    link.is_down = True
    threading.Timer(3, lambda: setattr(link, "is_down", False)).start()
    assert all_samples(shards) == all_samples(local)


def test_a_store_that_accepts_and_never_answers_is_waited_for_no_longer_than_patience(link, tmp_path: Path):
    shards = remote(tmp_path, patience_s=6.0)
    begun_s = time.monotonic()
    link.num_stalls, link.stall_s = 100, 50.0
    try:
        with pytest.raises(ShardError, match=r"shard-\d+.tar.*run.cache.patience_s"):
            shards.read(0)
        assert 6 <= time.monotonic() - begun_s < 20
    finally:
        link.num_stalls = 0


@pytest.mark.parametrize(
    "read",
    [lambda shards: next(Dataset(shards).read_ahead(range(9))), thumbnails],
    ids=["samples", "thumbnails"],
)
def test_ctrl_c_ends_a_reader_whose_store_hangs(link, tmp_path: Path, read: Callable[[Shards], object]):
    shards = remote(tmp_path)
    link.num_stalls, link.stall_s = 100, 60.0
    interrupt = threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    begun_s = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            read(shards)
        assert time.monotonic() - begun_s < 20
    finally:
        link.num_stalls = 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_store_that_stays_down_ends_the_loader_with_one_sentence(link, tmp_path: Path, num_workers):
    shards = remote(tmp_path, patience_s=1.0)
    link.is_down = True
    try:
        with pytest.raises(
            ShardError, match=r"^s3://shelf/train/shard-\d+.tar cannot be read: .*run.cache.patience_s"
        ):
            next(loader(Stream(shards, 4, 5), range(3), num_workers))
    finally:
        link.is_down = False


def test_a_fetcher_that_is_killed_is_started_again(local, tmp_path: Path):
    from pipeline.cache import client

    shards, numbers = remote(tmp_path), range(30)
    expected = [batch.keys for batch in loader(Stream(local, 4, 5), numbers)]
    keys = []
    for number, batch in enumerate(loader(Stream(shards, 4, 5), numbers, num_workers=1)):
        keys.append(batch.keys)
        if number in (0, 10):
            client._started[-1].send_signal(signal.SIGKILL)
    assert keys == expected


@pytest.mark.parametrize("is_planned", [True, False])
def test_a_cache_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path, is_planned: bool):
    (tmp_path / "file").touch()
    shards = remote(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=rf"{tmp_path}/file/cache.*run\.cache\.folder"):
        next(loader(Stream(shards, 4, 5), range(3))) if is_planned else shards.read(0)


def test_a_fetcher_takes_a_client_that_ends_within_a_line_and_holds_no_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    from pipeline.cache import client

    blocks = remote(tmp_path).blocks
    assert blocks
    connection = client.Connection(blocks.cache, blocks.index)
    connection.ask({"want": 0})
    assert connection._socket
    connection._socket.sendall(b'{"plan": [[0, 1, 2], [3,')
    connection.close()
    blocks.fetch(1)
    assert blocks.has(1)
    assert "Traceback" not in capfd.readouterr().err
    assert os.readlink(f"/proc/{client._started[-1].pid}/fd/1") == os.devnull


def test_a_file_that_was_replaced_by_a_longer_one_is_read_to_its_new_end():
    """A fetcher can run for days, and a user can replace shards under the same names."""
    system, downloader = s3_server.storage.system("s3"), Downloader(1, patience_s=5)
    for content in (b"short", b"a longer file"):
        with system.open_output_stream("shelf/replaced/a.tar") as stream:
            stream.write(content)
        assert downloader.read("s3://shelf/replaced", "a.tar", 0, len(content), content.__eq__) == content


def test_a_block_that_the_store_has_with_other_bytes_is_refused(tmp_path: Path):
    shards = remote(tmp_path)
    store, path = s3_server.storage.system("s3"), "shelf/other/shard-000000.tar"
    with store.open_output_stream(path) as stream:
        stream.write(bytes(shards.header["shards"][0]["bytes"]))
    other = Shards("s3://shelf/other", shards.table, shards.header, NodeCache(str(tmp_path / "other")))
    with pytest.raises(ShardError, match=r"other/shard-000000.tar.* differ"):
        other.read(0)
