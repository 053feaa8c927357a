"""Training on shards in a store: a local run's bits, after a kill on an empty cache, and when the store is gone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.config.run import Cache
from pipeline.distributed.rank import SINGLE
from pipeline.errors import ShardError
from pipeline.storage import system
from pipeline.training import loop
from pipeline.training.loop import train_worker
from tests import s3_server, slow_link
from tests.jobs import changed
from tests.training.test_loop import KilledError, bits, curve, kill_before_step, saved_steps


@pytest.fixture(scope="module")
def link() -> Iterator[slow_link.Link]:
    with s3_server.s3_server():
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with slow_link.linked(port) as link, pytest.MonkeyPatch.context() as patch:
            s3_server.point_to(f"http://127.0.0.1:{link.port}", patch)
            yield link
            s3_server.forget()


def in_store(job, cache: Path, **changes):
    """The job on a copy of its shards in the store, through an empty cache."""
    where = f"{s3_server.BUCKET}/{job.shards.parent.name}/train"
    fs.copy_files(str(job.shards), where, fs.LocalFileSystem(), system("s3"))
    return changed(job, shards=f"s3://{where}", run_cache=Cache(folder=str(cache), patience_s=1.0), **changes)


@pytest.mark.usefixtures("link")
@pytest.mark.parametrize("order", ["samples", "blocks"])
def test_a_run_that_was_killed_and_resumed_on_an_empty_cache_ends_with_a_local_runs_bits(
    make_job, tmp_path, monkeypatch, order
):
    alone = make_job(folder=tmp_path / "local", order=order)
    train_worker(alone, SINGLE)
    job = in_store(make_job(folder=tmp_path / "store", order=order), tmp_path / "first")
    with monkeypatch.context() as patch:
        kill_before_step(patch, 5)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    assert saved_steps(job) == [3]
    train_worker(changed(job, run_cache=Cache(folder=str(tmp_path / "second"))), SINGLE)
    assert bits(job) == bits(alone)
    assert curve(job, "loss") == curve(alone, "loss")
    assert all(0 <= share <= 1 for share in curve(job, "cache_hits"))
    assert list((tmp_path / "second").glob("*/*.block"))


def test_a_store_that_is_gone_for_good_ends_the_run_with_a_checkpoint_of_the_last_step(
    make_job, tmp_path, monkeypatch, link
):
    job = in_store(make_job(folder=tmp_path / "run"), tmp_path / "cache")
    real, steps = loop.backward, iter(range(100))

    def backward(*arguments):
        if next(steps) == 1:
            link.is_down = True
            for block in (tmp_path / "cache").glob("*/*.block"):
                block.unlink()
        return real(*arguments)

    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(ShardError, match=r"run\.cache\.patience_s"):
        train_worker(job, SINGLE)
    link.is_down = False
    assert saved_steps(job) == [2]
    train_worker(job, SINGLE)
    alone = make_job(folder=tmp_path / "local")
    train_worker(alone, SINGLE)
    assert bits(job) == bits(alone)
