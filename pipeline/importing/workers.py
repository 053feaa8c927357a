"""A function mapped over many values in order, in this process or in several."""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.errors import UserError

CHUNK = 8  # values that a process takes at once
_function: Callable[[Any], Any] | None = None  # of this worker process: it is sent once, not with every value


@contextmanager
def mapped(
    function: Callable[[Any], Any], workers: int
) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Give a function that maps `function` over values; results come in the order of the values.

    workers: processes; 1: this one.
    """
    if workers == 1:
        yield partial(map, function)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(function,))
    try:
        yield partial(pool.map, _call, chunksize=CHUNK)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was ended, perhaps because memory ran out; run the same command with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


def _call(value: Any) -> Any:
    assert _function is not None
    return _function(value)
