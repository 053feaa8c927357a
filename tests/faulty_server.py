"""A real HTTP server on loopback that misbehaves on request.

`server.script = [drop_after(1000), serve()]`: the first request gets the first behaviour, and so on; every later one
gets the last. Every path serves the same body.
"""

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    num_sent: int = 0  # bytes of body handed to the system

    @property
    def start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "FaultyServer"
    request_log: Request

    def do_GET(self) -> None:
        self.request_log = Request(self.path, dict(self.headers.items()))
        self.server.requests.append(self.request_log)
        number = min(len(self.server.requests), len(self.server.script))
        self.close_connection = True
        self.server.script[number - 1](self)

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.request_log.num_sent += len(data)


Behaviour = Callable[[Handler], None]


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, body: bytes = b"", certificate: Path | None = None):
        super().__init__((HOST, 0), Handler)
        self.body = body
        self.etag = f'"{hashlib.md5(body).hexdigest()}"'
        self.script: list[Behaviour] = [serve()]
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.scheme = "https" if certificate else "http"
        # Small, so that bytes counted as sent are soon received
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.server_port}/file.tar"

    def handle_error(self, *_: object) -> None:
        pass  # the tests make clients hang up

    def __enter__(self) -> "FaultyServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


def _head_of_range(handler: Handler, use_range: bool = True, **changes: object) -> bytes:
    """Send the headers of a correct server, and return the body that belongs to them."""
    server, log = handler.server, handler.request_log
    headers: dict[str, object] = {"ETag": server.etag}
    start = 0
    if use_range and "Range" in log.headers and log.headers.get("If-Range", server.etag) == server.etag:
        start = log.start
        headers["Content_Range"] = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
    body = server.body[start:]
    headers = {"Content_Length": len(body), **headers, **changes}
    handler.head(
        206 if "Content_Range" in headers else 200, **{k: v for k, v in headers.items() if v is not None}
    )
    return body


def serve(**changes: object) -> Behaviour:
    """Answer correctly; `changes` are headers to change, or to leave out with None."""
    return lambda handler: handler.send(_head_of_range(handler, **changes))


def slow(chunk_bytes: int, pause_s: float) -> Behaviour:
    """Answer correctly, a chunk at a time."""

    def behave(handler: Handler) -> None:
        body = _head_of_range(handler)
        for start in range(0, len(body), chunk_bytes):
            handler.send(body[start : start + chunk_bytes])
            if handler.server.closing.wait(pause_s):
                return

    return behave


def drop_after(num_bytes: int, **changes: object) -> Behaviour:
    """Announce the whole body and hang up within it."""
    return lambda handler: handler.send(_head_of_range(handler, **changes)[:num_bytes])


def stall_after(num_bytes: int) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.send(_head_of_range(handler)[:num_bytes])
        handler.server.closing.wait()

    return behave


def silent() -> Behaviour:
    """Accept the request and never answer."""
    return lambda handler: handler.server.closing.wait() and None


def trickling_headers(pause_s: float) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not handler.server.closing.wait(pause_s):
            handler.connection.sendall(b"x")

    return behave


def ignore_range(**changes: object) -> Behaviour:
    return lambda handler: handler.send(_head_of_range(handler, use_range=False, **changes))


def at_another_offset(shift: int) -> Behaviour:
    """Answer a range request with a range that begins elsewhere."""

    def behave(handler: Handler) -> None:
        body, start = handler.server.body, handler.request_log.start + shift
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.send(
            _head_of_range(handler, use_range=False, Content_Range=span, Content_Length=len(body) - start)[
                start:
            ]
        )

    return behave


def status(code: int, body: bytes = b"no", **headers: object) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.head(code, Content_Length=len(body), **headers)
        handler.send(body)

    return behave


def other_body(body: bytes, **headers: object) -> Behaviour:
    return status(200, body, **headers)


def without_length(body: bytes | None = None) -> Behaviour:
    """Send no Content-Length: the body ends where the connection does."""

    def behave(handler: Handler) -> None:
        handler.head(200)
        handler.send(handler.server.body if body is None else body)

    return behave


def endless(chunk: bytes, **headers: object) -> Behaviour:
    """Send for as long as the client listens, chunked and so without a length."""

    def behave(handler: Handler) -> None:
        handler.head(206 if "Content_Range" in headers else 200, Transfer_Encoding="chunked", **headers)
        while not handler.server.closing.is_set():
            handler.connection.sendall(b"%x\r\n" % len(chunk))
            handler.send(chunk)
            handler.connection.sendall(b"\r\n")

    return behave


def redirect(target: str, code: int = 302) -> Behaviour:
    return status(code, Location=target)


def wait_until(claim: Callable[[], bool], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < end, f"nothing happened in {timeout_s} s"
        time.sleep(0.005)
