"""`fcn serve`: a page and an API that show what a net sees in a photo. No other module knows FastAPI or uvicorn.

The server trusts nobody: a request is counted while it is read, few are taken in at a time, one is worked on, and each
has an end. Pages of other sites can neither read its answers nor have it work.
"""

import asyncio
import base64
import hashlib
import io
import ipaddress
import math
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.datasets.files import encode_label
from pipeline.errors import CheckpointError, PhotoError, PhotoFormatError, PhotoSizeError, ServerError
from pipeline.photos import decode_photo
from pipeline.predict import Net, load_net
from pipeline.segmentation import described, layers, segment

PAGE = Path(__file__).with_name("serve.html")
PHOTO = "the photo"  # what messages call it; its name is the sender's business
STATUS_OF = {PhotoFormatError: 415, PhotoSizeError: 413, PhotoError: 400}
FORM = "multipart/form-data"
T = TypeVar("T")
Format = Literal["png", "json", "layers"]


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a request's body.   seconds: from a request's start to its answer.

    waiting: how many requests may wait while one is worked on.   side: see predict.score_maps.
    """

    max_bytes: int
    seconds: float
    waiting: int
    side: int


def serve(model: Path, host: str, port: int, limits: Limits) -> None:
    """Serves until Ctrl-C.   port: 0 for any that is free. ServerError if it cannot be had."""
    net = load_net(model)
    listening = _listen(host, port)
    desk = Desk(limits)
    address, port = listening.getsockname()[:2]
    app = Guard(application(net, model.name, desk), own_names(host), policy())
    config = uvicorn.Config(
        app, http="h11", ws="none", log_config=None, server_header=False, access_log=False
    )
    shown = f"[{address}]" if ":" in address else address
    print(f"http://{shown}:{port} shows what {model} sees; Ctrl-C stops it", flush=True)
    if not ipaddress.ip_address(address).is_loopback:
        print(
            "warning: whoever reaches this machine can use it, unencrypted; --host 127.0.0.1 keeps it here",
            flush=True,
        )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        if desk.inside:  # a forward pass cannot be told to stop, and nothing of it is kept
            os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServerError(
            f"cannot listen on {host}, port {port}: {reason}; try another --port or --host"
        ) from error


def application(net: Net, name: str, desk: "Desk") -> FastAPI:
    """The page, /predict and /health. Errors are JSON: {"error": what is wrong}.   name: of the model."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages load scripts of other hosts
    about = {
        "name": name,
        "backbone": net.options.get("backbone", "vgg16"),
        "stride": net.options.get("stride", 8),
    }
    page = PAGE.read_text("utf-8")

    @app.get("/")
    def show() -> Response:
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": about | {"classes": net.classes}, "requests": desk.inside}

    @app.post("/predict")
    async def predict(request: Request, format: Format = "png") -> Response:
        return await desk.answer(
            lambda: body_of(request, desk.limits.max_bytes),
            lambda data, go_on: answer_to(data, net, about, desk.limits.side, format, go_on),
        )

    @app.exception_handler(AnyHTTPException)
    async def refuse(_: Request, error: AnyHTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(_: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{detail['loc'][-1]}: {detail['msg']}" for detail in error.errors())
        return JSONResponse({"error": f"{wrong}; see docs/serve.md"}, 400)

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:  # noqa: ARG001
        return JSONResponse({"error": "the server failed; its terminal says why"}, 500)

    return app


def answer_to(
    data: bytes, net: Net, about: dict[str, Any], side: int, format: Format, go_on: Callable[[], object]
) -> Response:
    """The answer to a photo's bytes; HTTPException if they are none, or the model is damaged."""
    try:
        photo = decode_photo(io.BytesIO(data), PHOTO)
        found = segment(net, photo, side, PHOTO, go_on)
    except PhotoError as error:
        raise HTTPException(STATUS_OF[type(error)], str(error)) from error
    except CheckpointError as error:
        raise HTTPException(500, str(error)) from error
    if format == "png":
        return Response(encode_label(found.prediction), media_type="image/png")
    said = {"model": about} | described(found, net.classes)
    return JSONResponse(said | (layers(found, photo) if format == "layers" else {}))


async def body_of(request: Request, most: int) -> bytes:
    """The photo in a request: its body, or the first file of a form. HTTPException if it is too large or not there."""
    refusal = HTTPException(413, f"the request has more than {most} bytes; send a smaller photo")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most:
        raise refusal
    num = 0

    async def counted() -> Message:
        nonlocal num
        message = await request.receive()
        num += len(message.get("body", b""))
        if num > most:  # a length need not be stated, and need not be true
            raise refusal
        return message

    try:
        if not request.headers.get("content-type", "").startswith(FORM):
            data = await Request(request.scope, counted).body()
        else:
            async with Request(request.scope, counted).form(max_files=1, max_fields=8) as form:
                files = [value for value in form.values() if isinstance(value, UploadFile)]
                data = await files[0].read() if files else b""
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the photo did") from None
    if not data:
        raise HTTPException(400, "no photo came; send one as the body, or as `file` of a form")
    return data


class Desk:
    """Lets few requests in and works on one at a time, in a thread beside the one that talks to clients."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.inside = 0  # requests that are read, wait or are worked on
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)
        self._last = 1.0  # seconds that the last one took

    async def answer(
        self, read: Callable[[], Awaitable[bytes]], work: Callable[[bytes, Callable[[], None]], T]
    ) -> T:
        """What `work` makes of what `read` gives.   work: is given what to call now and then; it ends late work.

        HTTPException if there is no room (503), or reading (408) or the answer (504) takes too long. A place is free
        again when the work on it has ended, which may be after its client was told that it takes too long.
        """
        end = time.monotonic() + self.limits.seconds

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
            seconds = f"{self.limits.seconds:g} seconds"
            raise HTTPException(status, f"{what} within {seconds}; send a smaller photo") from None

    def _enter(self) -> None:
        with self._lock:
            if self.inside > self.limits.waiting:
                later = math.ceil(max(1.0, self._last * self.inside))
                raise HTTPException(
                    503,
                    f"{self.inside} photos are being worked on, which is all that may wait; send it again in {later} s",
                    {"Retry-After": str(later)},
                )
            self.inside += 1

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1


class Guard:
    """Lets no other site's page in, and tells browsers what the page may do.

    names: what this server is called, besides its addresses. A page can have its own name point here (DNS rebinding),
    but not an address; so a request by another name is refused, and so is one that a page of another origin makes.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], policy: str):
        self.app, self.names = app, names
        self.headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        app = self._refusal(Headers(scope=scope)) or self.app
        await app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host):
            said = f"{host!r} is not what this server is called; ask for it by its address"
            return JSONResponse({"error": said}, 400)
        if origin is not None and urlsplit(origin).netloc != host:
            return JSONResponse({"error": f"a page of {origin} may not use this server"}, 403)
        return None

    def _is_own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name in self.names
        return True


def own_names(host: str) -> frozenset[str]:
    return frozenset(name.lower() for name in ("localhost", socket.gethostname(), host))


def policy() -> str:
    """The page's Content-Security-Policy: its own script and style, known by their sha256, and no other host."""
    page = PAGE.read_text("utf-8")

    def sources(tag: str) -> str:
        parts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
