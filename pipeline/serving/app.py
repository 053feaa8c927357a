"""`fcn serve`: a page and an API that show what a net sees in a photo. No other module knows FastAPI or uvicorn.

The server trusts nobody: a request is counted while it is read, pipeline/serving/request_queue.py lets few in and ends them in time,
pipeline/serving/same_origin.py keeps other sites' pages away.
"""

import io
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
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
from starlette.types import Message

from pipeline.errors import PhotoError, PhotoFormatError, PhotoSizeError, ServerError, UserError
from pipeline.prediction.photos import decode_photo
from pipeline.prediction.predict import Net, load_net
from pipeline.serving.answer import described, layers, segment
from pipeline.serving.request_queue import Desk, RefusedError
from pipeline.serving.same_origin import Guard, own_names, policy
from pipeline.shards.labels import encode_label

PAGE = Path(__file__).with_name("page.html")
PHOTO = "the photo"  # what messages call it; its name is the sender's business
STATUS_OF = {PhotoFormatError: 415, PhotoSizeError: 413, PhotoError: 400}
FORM = "multipart/form-data"
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
    desk, page = Desk(limits.seconds, limits.waiting), PAGE.read_text("utf-8")
    address, port = listening.getsockname()[:2]
    app = Guard(application(net, model.name, page, desk, limits), own_names(host), policy(page))
    config = uvicorn.Config(
        app, http="h11", ws="none", log_config=None, server_header=False, access_log=False
    )
    shown = f"[{address}]" if ":" in address else address
    # Until Server takes it: Ctrl-C in between would leave its coroutine half made, with a warning
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    print(f"http://{shown}:{port} shows what {model} sees; Ctrl-C stops it", flush=True)
    if not ipaddress.ip_address(address).is_loopback:
        said = "whoever reaches this machine can use it, unencrypted; --host 127.0.0.1 keeps it here"
        print(f"warning: {said}", flush=True)
    Server(config).run(sockets=[listening])


class Server(uvicorn.Server):
    """Ends at once on Ctrl-C: a forward pass cannot be told to stop, and nothing of it is kept."""

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
        reason = os.strerror(number) if number > 0 else error  # without what Python adds to it
        raise ServerError(
            f"cannot listen on {host}, port {port}: {reason}; try another --port or --host"
        ) from error


def application(net: Net, name: str, page: str, desk: Desk, limits: Limits) -> FastAPI:
    """The page, /predict and /health. Errors are JSON: {"error": what is wrong}.   name: of the model."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages load scripts of other hosts
    about = {
        "name": name,
        "backbone": net.options.get("backbone", "vgg16"),
        "stride": net.options.get("stride", 8),
    }

    @app.get("/")
    def show() -> Response:
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": about | {"classes": net.classes}, "requests": desk.inside}

    @app.post("/predict")
    async def predict(request: Request, format: Format = "png") -> Response:
        return await desk.answer(
            lambda: body_of(request, limits.max_bytes),
            lambda data, go_on: answer_to(data, net, about, limits.side, format, go_on),
        )

    @app.exception_handler(RefusedError)
    async def refuse(_: Request, error: RefusedError) -> Response:
        return JSONResponse({"error": error.message}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_path(_: Request, error: HTTPException) -> Response:
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
    """The answer to a photo's bytes; RefusedError if they are none, or the model is damaged."""
    try:
        photo = decode_photo(io.BytesIO(data), PHOTO)
        found = segment(net, photo, side, PHOTO, go_on)
    except PhotoError as error:
        raise RefusedError(STATUS_OF[type(error)], str(error)) from error
    except UserError as error:  # a damaged model, or tiles too small for it
        raise RefusedError(500, str(error)) from error
    if format == "png":
        return Response(encode_label(found.prediction), media_type="image/png")
    said = {"model": about} | described(found, net.classes)
    return JSONResponse(said | (layers(found, photo) if format == "layers" else {}))


async def body_of(request: Request, most: int) -> bytes:
    """The photo in a request: its body, or the first file of a form. RefusedError if it is too large or not there."""
    refusal = RefusedError(413, f"the request has more than {most} bytes; send a smaller photo")
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
        raise RefusedError(400, "the connection ended before the photo did") from None
    if not data:
        raise RefusedError(400, "no photo came; send one as the body, or as `file` of a form")
    return data
