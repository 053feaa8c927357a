"""Keeps other sites' pages away from a server, and tells browsers what its own page may do. Plain ASGI."""

import base64
import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """Lets no other site's page in.

    names: what this server is called, besides its addresses. A page can have its own name point here (DNS rebinding),
    but not an address; so a request by another name is refused, and so is one that a page of another origin makes.
    """

    def __init__(self, app: App, names: frozenset[str], policy: str):
        self.app, self.names = app, names
        self.headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        if refusal := self._refusal(
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        ):
            await _answer(send_guarded, *refusal)
        else:
            await self.app(scope, receive, send_guarded)

    def _refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host):
            return 400, f"{host!r} is not what this server is called; ask for it by its address"
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, f"a page of {origin} may not use this server"
        return None

    def _is_own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name in self.names
        return True


async def _answer(send: Send, status: int, error: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


def own_names(host: str) -> frozenset[str]:
    """What a server on this machine that was told to listen on `host` is called."""
    return frozenset(name.lower() for name in ("localhost", socket.gethostname(), host))


def policy(page: str) -> str:
    """The Content-Security-Policy of HTML: its own script and style, known by their sha256, and no other host."""

    def sources(tag: str) -> str:
        parts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
