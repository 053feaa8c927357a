"""Queue of requests: one is worked on, a few wait, and more are refused."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.exceptions import HTTPException

T = TypeVar("T")
R = TypeVar("R")


class RequestQueue:
    """Requests with a time limit, whose work runs one at a time in a thread beside the event loop.

    seconds: from a request's start to its answer.
    max_waiting: requests that may wait while one is worked on.
    """

    def __init__(self, seconds: float, max_waiting: int):
        self.seconds, self.max_waiting = seconds, max_waiting
        self.num_inside = 0  # requests that are read, wait or are worked on
        self._turn = asyncio.Semaphore(1)
        self._last_s = 1.0  # seconds that the last work took

    async def answer(self, read: Callable[[], Awaitable[T]], work: Callable[[T, float], R]) -> R:
        """Return work(await read(), deadline). The work should raise TimeoutError soon after the deadline.

        A place in the queue is free again when its work has ended, which may be after the client got its 504.

        Raises HTTPException if the queue is full (503), or if reading (408) or the answer (504) takes too long.
        """
        if self.num_inside > self.max_waiting:
            later_s = math.ceil(max(1.0, self._last_s * self.num_inside))
            message = (
                f"{self.num_inside} photos are in the queue, which is full; send it again in {later_s} s"
            )
            raise HTTPException(503, message, {"Retry-After": str(later_s)})
        self.num_inside += 1
        deadline, task = time.monotonic() + self.seconds, None
        try:
            async with asyncio.timeout_at(deadline):  # the event loop's clock is time.monotonic
                data = await read()
                task = asyncio.create_task(self._in_turn(lambda: work(data, deadline)))
                return await asyncio.shield(task)
        except TimeoutError:
            status, reason = (504, "no answer was found") if task else (408, "the photo did not arrive")
            raise HTTPException(
                status, f"{reason} within {self.seconds:g} seconds; send a smaller photo"
            ) from None
        finally:
            task.add_done_callback(self._leave) if task else self._leave()

    async def _in_turn(self, work: Callable[[], R]) -> R:
        async with self._turn:
            start = time.monotonic()
            try:
                return await asyncio.to_thread(work)
            finally:
                self._last_s = time.monotonic() - start

    def _leave(self, task: "asyncio.Task | None" = None) -> None:
        self.num_inside -= 1
        if task and not task.cancelled():
            task.exception()  # otherwise asyncio logs the TimeoutError of work whose client has its 504 already
