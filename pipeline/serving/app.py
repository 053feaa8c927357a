"""`fcn serve`: a web page and an API that show a net's label map of a photo.

No client is trusted: a request's size is counted while it is read, request_queue.py bounds how many there are and how
long they take, and same_origin.py keeps other sites' pages out.
"""

import io
import ipaddress
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import PhotoError, PhotoFormatError, PhotoSizeError, ServerError, UserError
from pipeline.models.predictor import Predictor
from pipeline.prediction.photos import decode_photo
from pipeline.serving.answer import described, layers, require_layers, segment
from pipeline.serving.metrics import CONTENT_TYPE_LATEST, Measured, Metrics
from pipeline.serving.request_queue import RequestQueue
from pipeline.serving.same_origin import SameOrigin, own_names, policy
from pipeline.serving.slow_senders import HeadTimeout
from pipeline.shards.labels import encode_label

PAGE = Path(__file__).with_name("page.html")
PHOTO = "the photo"  # its name in messages; the file's name is not sent
STATUS_OF = {PhotoFormatError: 415, PhotoSizeError: 413, PhotoError: 400}
Format = Literal["png", "json", "layers"]


@dataclass(frozen=True)
class Proxy:
    """The addresses under which a proxy publishes the server; by default there is no proxy.

    allowed: names that a request's Host and Origin may have.
    root_path: the prefix of all paths, such as /segment, whether the proxy takes it away or not.
    """

    allowed: tuple[str, ...] = ()
    root_path: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    max_bytes: of its body.
    seconds: from its start to its answer.
    max_waiting: requests that may wait while one is worked on.
    side: of the tiles of large photos, in pixels; see Predictor.parts.
    """

    max_bytes: int
    seconds: float
    max_waiting: int
    side: int | None


def serve(model: Path, host: str, port: int, limits: Limits, proxy: Proxy) -> None:
    """Serve until Ctrl-C.

    port: 0 for any free port.

    Raises ServerError if the port cannot be opened, UserError if tiles of `limits.side` would consist of overlap only.
    """
    predictor = Predictor.load(model)
    if limits.side:
        predictor.require_side(limits.side)
    listening = _listen(host, port)
    page = PAGE.read_text("utf-8")
    app = UnderPrefix(application(predictor, page, limits), proxy.root_path)
    app = SameOrigin(app, own_names(host), [name.lower() for name in proxy.allowed], policy(page))
    config = uvicorn.Config(
        app,
        http=HeadTimeout,
        ws="none",
        log_config=None,
        server_header=False,
        access_log=False,
        proxy_headers=False,  # nothing depends on the client's address or scheme
    )
    address, port = listening.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    # Until Server.run handles signals: Ctrl-C before that would leave a coroutine that was never awaited, a warning
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    print(f"{url} shows what {model} sees; Ctrl-C stops it", flush=True)
    if not ipaddress.ip_address(address).is_loopback:
        print(
            "warning: any machine that reaches this one can use the server, unencrypted; --host 127.0.0.1 prevents it",
            flush=True,
        )
    Server(config).run(sockets=[listening])


class UnderPrefix:
    """ASGI middleware: starlette finds the routes with the prefix and without it, as root_path is defined."""

    def __init__(self, app: ASGIApp, prefix: str):
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "root_path": self.prefix}, receive, send)


class Server(uvicorn.Server):
    """A server that exits at once on Ctrl-C: a forward pass cannot be interrupted, and nothing of it is kept."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT:
            os._exit(0)
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else error  # without the address that Python adds
        raise ServerError(
            f"cannot listen on {host}, port {port}: {reason}; try another --port or --host"
        ) from error


def application(predictor: Predictor, page: str, limits: Limits) -> FastAPI:
    """Return the app of the page, /predict, /health and /metrics. Its errors are JSON, {"error": message}.

    page: HTML.
    """
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None
    )  # FastAPI's pages load scripts of other hosts
    queue = RequestQueue(limits.seconds, limits.max_waiting)
    metrics = Metrics(queue)
    app.add_middleware(Measured, metrics=metrics)
    defaults = {"backbone": "vgg16", "stride": 8}
    about = {"name": predictor.name} | {key: predictor.options.get(key, defaults[key]) for key in defaults}

    def work(data: bytes, deadline: float, format: Format) -> Response:
        try:
            photo = decode_photo(io.BytesIO(data), PHOTO)
            if format == "layers":
                require_layers(photo)
            segmentation = segment(predictor, photo, limits.side, deadline)
        except PhotoError as error:
            raise HTTPException(STATUS_OF[type(error)], str(error)) from error
        except UserError as error:  # a damaged model, or tiles too small for it
            raise HTTPException(500, str(error)) from error
        if format == "png":
            return Response(encode_label(segmentation.prediction), media_type="image/png")
        content = {"model": about} | described(segmentation, predictor.classes)
        return JSONResponse(content | (layers(segmentation, photo) if format == "layers" else {}))

    @app.get("/")
    def show() -> Response:
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        model = about | {"classes": predictor.classes}
        return {"status": "ok", "model": model, "requests": queue.num_inside}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict")
    async def predict(request: Request, format: Format = "png") -> Response:
        return await queue.answer(
            lambda: read_photo(request, limits.max_bytes),
            lambda data, deadline: work(data, deadline, format),
        )

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(_: Request, error: RequestValidationError) -> Response:
        reasons = "; ".join(f"{detail['loc'][-1]}: {detail['msg']}" for detail in error.errors())
        return JSONResponse({"error": f"{reasons}; see docs/serve.md"}, 400)

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:  # noqa: ARG001
        return JSONResponse({"error": "the server failed; its terminal shows the reason"}, 500)

    return app


async def read_photo(request: Request, max_bytes: int) -> bytes:
    """Return the photo in a request: its body, or the file of a form.

    Raises HTTPException if the body is too large, incomplete or empty, or the form has two files.
    """
    too_large = HTTPException(413, f"the request has more than {max_bytes} bytes; send a smaller photo")
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length) > max_bytes:
        raise too_large
    num_bytes = 0

    async def receive_counted() -> Message:  # Content-Length may be missing or wrong
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise too_large
        return message

    counted = Request(request.scope, receive_counted)
    try:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            data = await counted.body()
        else:
            async with counted.form(max_files=1, max_fields=8) as form:
                file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
                data = await file.read() if file else b""
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the photo was complete") from None
    if not data:
        raise HTTPException(400, "the request holds no photo; send one as the body, or as `file` of a form")
    return data
