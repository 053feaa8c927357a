"""Work for many who ask at once: few are let in, one is worked on, and each has an end."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class RefusedError(Exception):
    """A request that is not answered; status, message and headers are HTTP's."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Desk:
    """Works on one request at a time, in a thread beside the one that talks to clients.

    seconds: from a request's start to its answer.   waiting: how many may wait while one is worked on.
    """

    def __init__(self, seconds: float, waiting: int):
        self.seconds, self.waiting = seconds, waiting
        self.inside = 0  # requests that are read, wait or are worked on
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)
        self._last = 1.0  # seconds that the last one took

    async def answer(
        self, read: Callable[[], Awaitable[bytes]], work: Callable[[bytes, Callable[[], None]], T]
    ) -> T:
        """What `work` makes of what `read` gives.   work: is given what to call now and then; it ends late work.

        RefusedError if there is no room (503), or reading (408) or the answer (504) takes too long. A place is free
        again when the work on it has ended, which may be after its client was told that it takes too long.
        """
        end = time.monotonic() + self.seconds

        def go_on() -> None:
            if time.monotonic() > end:
                raise TimeoutError

        def timed(data: bytes) -> T:
            go_on()
            start = time.monotonic()
            try:
                return work(data, go_on)
            finally:
                self._last = time.monotonic() - start

        self._enter()
        try:
            data = await self._within(end, read(), 408, "the photo did not arrive")
            future = self._thread.submit(timed, data)
        except BaseException:
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())
        return await self._within(end, asyncio.wrap_future(future), 504, "no answer was found")

    async def _within(self, end: float, awaited: Awaitable[T], status: int, what: str) -> T:
        try:
            async with asyncio.timeout(end - time.monotonic()):
                return await awaited
        except TimeoutError:
            seconds = f"{self.seconds:g} seconds"
            raise RefusedError(status, f"{what} within {seconds}; send a smaller photo") from None

    def _enter(self) -> None:
        with self._lock:
            if self.inside > self.waiting:
                later = math.ceil(max(1.0, self._last * self.inside))
                raise RefusedError(
                    503,
                    f"{self.inside} photos are being worked on, which is all that may wait; send it again in {later} s",
                    {"Retry-After": str(later)},
                )
            self.inside += 1

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1
