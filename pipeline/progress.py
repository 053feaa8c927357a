"""How long work shows itself: a bar with rate and time left on a terminal, a line now and then in a log."""

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 10.0  # between two lines where nobody watches a bar


def bar(total: int, what: str, unit: str = "image", delay_s: float = 0) -> "tqdm[Any]":
    """A progress bar for `total` units, to be used as a context manager and told of each by update().

    delay_s: work that is done sooner shows no bar.
    """
    return tqdm(total=total, desc=what, unit=unit, mininterval=interval_s(), delay=delay_s)


def interval_s() -> float:
    """How often a bar shows itself anew where standard error goes to now."""
    return 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
