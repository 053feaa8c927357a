"""Progress bars: with rate and time left on a terminal, one line every few seconds in a log."""

import sys
from typing import Any

from tqdm import tqdm

TERMINAL_INTERVAL_S = 0.1
LOG_INTERVAL_S = 10.0


def bar(total: int, what: str, unit: str = "image", delay_s: float = 0) -> "tqdm[Any]":
    """Return a progress bar, to be used as a context manager and advanced by update().

    total: number of units.
    what: the text before the bar.
    unit: name of a unit.
    delay_s: seconds before the bar appears; shorter work shows none.
    """
    return tqdm(total=total, desc=what, unit=unit, mininterval=_interval_s(), delay=delay_s)


def bytes_bar(total: int | None, what: str, num_done: int = 0) -> "tqdm[Any]":
    """Return a progress bar that counts bytes.

    total: bytes of the whole file; None if unknown.
    what: the text before the bar.
    num_done: bytes that were there before.
    """
    return tqdm(
        total=total, initial=num_done, desc=what, unit="B", unit_scale=True, mininterval=_interval_s()
    )


def _interval_s() -> float:
    return TERMINAL_INTERVAL_S if sys.stderr.isatty() else LOG_INTERVAL_S
