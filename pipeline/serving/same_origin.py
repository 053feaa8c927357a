"""Protection from other sites' pages: the checks of a request's Host and Origin, and headers for browsers."""

import base64
import hashlib
import ipaddress
import re
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SameOrigin:
    """ASGI middleware that refuses requests of other sites' pages, and adds security headers to all answers.

    A site can point its own name at this server (DNS rebinding), but not an IP address. So the Host must be an address
    or one of `names`. starlette's TrustedHostMiddleware takes a list of hosts, which cannot hold every address
    by which a server behind NAT is reached.

    names: of this server, in lower case.
    allowed: names under which a proxy shows this server, in lower case; its pages may use it under any port, since the
        proxy may send another Host than the browser did.
    policy: the Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], allowed: Collection[str], policy: str):
        self.app, self.names, self.allowed = app, {*names, *allowed}, allowed
        self.headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        app = (self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None) or self.app
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host):
            message = (
                f"{host!r} is not a name of this server; use its address, or start it with --allowed-host"
            )
            return JSONResponse({"error": message}, 400)
        if origin is not None and not self._is_allowed(origin, host):
            return JSONResponse({"error": f"a page of {origin} may not use this server"}, 403)
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            return parts.netloc == host or (parts.hostname or "") in self.allowed
        except ValueError:  # such as http://[
            return False

    def _is_own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name in self.names
        return True


def own_names(host: str) -> set[str]:
    """Return the names of a server on this machine that listens on `host`, in lower case."""
    return {name.lower() for name in ("localhost", socket.gethostname(), host)}


def policy(page: str) -> str:
    """Return the Content-Security-Policy of an HTML page: its own script and style by sha256, and no other host."""

    def sources(tag: str) -> str:
        parts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
