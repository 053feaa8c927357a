"""A function mapped over many values in order, in this process or in several, with flat memory."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pool
from multiprocessing.pool import Pool as PoolType
from typing import Any

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
    with Pool(workers, _start, (function,)) as pool:
        yield partial(_run, pool)


def _run(pool: PoolType, values: Iterable[Any]) -> Iterator[Any]:
    return pool.imap(_call, values, chunksize=CHUNK)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


def _call(value: Any) -> Any:
    assert _function is not None
    return _function(value)
