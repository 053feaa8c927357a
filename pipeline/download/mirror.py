"""Limits on a download, the two ways a mirror fails, and its URL without secrets."""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on one download, the same for each of its mirrors.

    max_bytes: largest size accepted.
    allowed_hosts: 'host' or 'host:port' a redirect may lead to, besides the URL's own.
    stall_s: longest silence of a server.
    window_s: seconds of one window; the headers get one, the body one after the other.
    window_bytes: fewest bytes of the body in each window.
    tries: how often in a row a mirror may fail without progress.
    backoff_s: pause after the first failure, doubled after each.
    retry_after_max_s: longest pause that a server may demand by Retry-After.
    """

    max_bytes: int = 8 * 2**30  # four times VOC2012, the largest file known here
    allowed_hosts: Collection[str] = ()
    stall_s: float = 20.0  # longer than a pause of a busy server, and an error within 30 s
    window_s: float = 25.0  # one for the headers and one for the body make an error within 60 s
    window_bytes: int = 25 * 1024  # 1 KiB/s; VOC2012 would take three weeks
    tries: int = 5
    backoff_s: float = 1.0
    retry_after_max_s: float = 60.0  # rather than wait an hour, use the next mirror


class MirrorError(Exception):
    """This mirror does not give the file; another may."""


class RetryError(Exception):
    """This try failed; the same mirror may give the file after `wait_s` (None: the usual back-off)."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        super().__init__(cause)
        self.wait_s = wait_s


def shown(url: str) -> str:
    """Return a URL without user, password, query and fragment, which may hold secrets."""
    # A password may hold '/', '?' or '#' unquoted: after 'user:' everything up to the last '@' is dropped.
    credentials = r"(?:[^/?#@]*:.*@|[^/?#]*@)?"
    return re.sub(rf"^([\w+.-]+://)?{credentials}([^?#]*).*$", r"\1\2", url, flags=re.DOTALL)
