"""How long work shows itself: a bar with rate and time left on a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm

LOG_INTERVAL_S = 10.0  # between two lines where nobody watches a bar


def bar(total: int, what: str, unit: str = "image") -> "tqdm[None]":
    """A progress bar for `total` units, to be used as a context manager and told of each by update()."""
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(total=total, desc=what, unit=unit, mininterval=interval, unit_scale=unit == "B")
