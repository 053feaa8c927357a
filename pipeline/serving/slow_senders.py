"""Connections whose request never comes to an end of its head are closed; uvicorn waits for them without a limit."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20  # from the connection, or from a later request's first byte, to the end of the head


class HeadTimeout(H11Protocol):
    """uvicorn's protocol with a limit for the head of a request; request_queue.py limits the body."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._is_between_requests and not self._head_timer:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)
        super().data_received(data)
        if not self._is_between_requests:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None
