"""Real processes that wait for each other through pipes."""

import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe

import pytest

from pipeline.distributed import meeting as module
from pipeline.distributed.meeting import Meeting

TIMES = 5


def come_then_sleep(times: int, sender: Connection, receiver: Connection) -> None:
    met = Meeting([sender], [receiver])
    for _ in range(times):
        met.wait()
    time.sleep(60)


@pytest.fixture
def other():
    """A process that comes TIMES times and no more, and our end of the meeting with it."""
    ours, to_us = Pipe(duplex=False)
    theirs, to_them = Pipe(duplex=False)
    process = get_context("spawn").Process(target=come_then_sleep, args=(TIMES, to_us, theirs))
    process.start()
    to_us.close()
    theirs.close()
    yield process, Meeting([to_them], [ours])
    process.kill()
    process.join()


def test_a_worker_that_was_killed_is_missed_at_once(other):
    process, met = other
    for _ in range(TIMES):
        met.wait()
    process.kill()
    process.join()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="another worker has gone"):
        met.wait()
    assert time.monotonic() - start < module.COLLECTIVE_TIMEOUT_S / 10
    with pytest.raises(RuntimeError, match="another worker has gone"):
        met.wait()


def test_a_worker_killed_while_another_waits_for_it_ends_the_waiting(other):
    process, met = other
    for _ in range(TIMES):
        met.wait()
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(RuntimeError, match="another worker has gone: EOFError"):
        met.wait()


def test_a_worker_that_hangs_is_not_waited_for_forever(other, monkeypatch):
    _, met = other
    for _ in range(TIMES):
        met.wait()
    monkeypatch.setattr(module, "COLLECTIVE_TIMEOUT_S", 1)
    with pytest.raises(RuntimeError, match="did not come within 1 s"):
        met.wait()
