"""Ranges of a store's files, read in spite of lost connections, stalls and outages."""

import random
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from io import UnsupportedOperation

from pipeline.errors import ShardError
from pipeline.storage import Folder, forget_opened

FIRST_STALL_S = 5.0  # until durations are known
LEAST_STALL_S = 1.0
STALL_FACTOR = 4.0  # times the median duration
MAX_PAUSE_S = 5.0
NOTICE_S = 10.0  # before the first line about an outage, and between two
MAX_REQUESTS = 3  # for the same bytes at a time
MAX_DAMAGED = 3  # answers of other bytes than expected


class Downloader:
    """Reads ranges. A request that stalls gets others beside it; a failed one is repeated.

    connections: requests at a time, as callers make them; those beside stalled ones come on top.
    patience_s: seconds of failures after which the last one is raised.
    """

    def __init__(self, connections: int, patience_s: float):
        self._pool = ThreadPoolExecutor(2 * connections)
        self._patience_s = patience_s
        self._durations_s: deque[float] = deque(maxlen=64)
        self._notice = threading.Lock()
        self._noticed_s = 0.0

    def read(self, where: str, file: str, start: int, end: int, is_intact: Callable[[bytes], bool]) -> bytes:
        """Return the bytes start .. end - 1 of a file; ShardError if it is not there, or patience ends.

        is_intact: whether the bytes are as expected; others are read again.
        """
        folder, pause_s, num_damaged = Folder(where), 0.1, 0
        deadline_s, error = time.monotonic() + self._patience_s, None
        while True:
            try:
                data = self._hedged(lambda: folder.read(file, start, end - start), deadline_s)
                if is_intact(data):
                    return data
                error = ShardError(f"{folder.name(file)}: bytes {start}-{end - 1} differ from the manifest")
                num_damaged += 1
                forget_opened()
            except ShardError as failure:
                if isinstance(failure.__cause__, FileNotFoundError | UnsupportedOperation):
                    raise
                error = failure
                forget_opened()
            except TimeoutError:
                error = error or ShardError(f"{folder.name(file)} cannot be read: no answer")
            left_s = deadline_s - time.monotonic()
            if num_damaged == MAX_DAMAGED:
                raise error
            if left_s <= 0:
                raise ShardError(f"{error}; tried for {self._patience_s:.0f} s (run.cache.patience_s)")
            if self._patience_s - left_s > NOTICE_S:
                self._print(f"{error}; trying again for up to {left_s:.0f} s")
            time.sleep(min(pause_s, left_s) * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _hedged(self, request: Callable[[], bytes], deadline_s: float) -> bytes:
        """Return the first answer of a request and, whenever all stall, of one more, up to MAX_REQUESTS.

        The first failure is raised, for `read` to repeat the request: those that stall could take until the store's
        client gives up. TimeoutError: none has ended at the deadline.
        """
        running = {self._pool.submit(self._timed, request)}
        while (left_s := deadline_s - time.monotonic()) > 0:
            may_add = len(running) < MAX_REQUESTS
            done, running = wait(
                running, min(self._stall_s(), left_s) if may_add else left_s, FIRST_COMPLETED
            )
            if done:
                answers = [future for future in done if not future.exception()]
                return (answers or list(done))[0].result()
            if may_add:
                running.add(self._pool.submit(self._timed, request))
        raise TimeoutError

    def _timed(self, request: Callable[[], bytes]) -> bytes:
        begun_s = time.monotonic()
        data = request()
        self._durations_s.append(time.monotonic() - begun_s)
        return data

    def _stall_s(self) -> float:
        durations_s = list(self._durations_s)
        if not durations_s:
            return FIRST_STALL_S
        return max(LEAST_STALL_S, STALL_FACTOR * statistics.median(durations_s))

    def _print(self, message: str) -> None:
        with self._notice:
            now_s = time.monotonic()
            if now_s - self._noticed_s > NOTICE_S:
                self._noticed_s = now_s
                print(message, file=sys.stderr, flush=True)
