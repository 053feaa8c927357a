"""How long to wait for a server, how often to ask again, and how much to take."""

from collections.abc import Collection
from dataclasses import dataclass

STALL_S = 20.0  # silence; longer than any pause of a busy server, and an error within 30 s
WINDOW_S = 25.0  # one for the answer and one for the body make an error within 60 s
WINDOW_BYTES = 25 * 1024  # at least these in each window; 1 KiB/s would take VOC2012 three weeks
TRIES = 5  # in a row without PROGRESS_BYTES, per mirror
BACKOFF_S = 1.0  # doubled after each try
RETRY_AFTER_MAX_S = 60.0  # a server may ask for an hour; the next mirror is better
MAX_BYTES = 8 * 2**30  # four times VOC2012, the largest file known here


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to ask again; tests shorten it."""

    stall_s: float = STALL_S
    window_s: float = WINDOW_S
    window_bytes: int = WINDOW_BYTES
    tries: int = TRIES
    backoff_s: float = BACKOFF_S
    retry_after_max_s: float = RETRY_AFTER_MAX_S


PATIENCE = Patience()


@dataclass(frozen=True)
class Limits:
    """What holds for every mirror of one file.

    max_bytes: nothing larger is taken.   allowed_hosts: 'host' or 'host:port' a redirect may also lead to.
    """

    max_bytes: int = MAX_BYTES
    allowed_hosts: Collection[str] = ()
    patience: Patience = PATIENCE


class MirrorError(Exception):
    """This mirror does not give the file; another may."""


class RetryError(Exception):
    """This try failed; the same mirror may give the file after `wait_s` (None: the usual back-off)."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        super().__init__(cause)
        self.wait_s = wait_s
