"""One process at a time, on this machine or on those that share the folder."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

POLL_S = 0.2


@contextmanager
def only_one(path: Path, what: str, patience_s: float = float("inf")) -> Iterator[bool]:
    """Holds the lock file while inside; gives whether another process had it. UserError if it has it for too long.

    what: what both would do, for the message. The system frees the lock of a process that was killed. A lock of the
    process (fcntl), not of the open file: the processes that a worker forks to read data do not keep it alive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        has_waited = not _take(file.fileno())
        if has_waited:
            file.seek(0)
            holder = file.read() or "another process"
            print(f"{holder} {what}; waiting until it ends ({path})", file=sys.stderr, flush=True)
            give_up = time.monotonic() + patience_s
            while not _take(file.fileno()):
                if time.monotonic() > give_up:
                    raise UserError(f"{holder} still {what}; end it and run the same command again ({path})")
                time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield has_waited


def _take(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
