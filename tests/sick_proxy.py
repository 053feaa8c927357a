"""A proxy in front of a real MLflow server that makes calls fail as networks and servers do."""

import contextlib
import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit


class Proxy:
    """Faults:

    "": the call succeeds.
    "500": the answer is an error, and the server does not get the call.
    "lost": the answer is an error, but the server has done the call.
    "cut": the server has done the call, and the answer ends in the middle.
    "slow": the call succeeds after half a second.
    """

    def __init__(self, target: str):
        self.target = urlsplit(target)
        self.calls = 0
        self._fault: Callable[[int], str] = lambda _: ""
        self._lock = threading.Lock()
        self.uri = ""

    def suffers(self, fault: str | Callable[[int], str]) -> None:
        """Set the fault of all calls from now on, or a function that returns it for each call's number from 1."""
        with self._lock:
            self._fault = fault if callable(fault) else lambda _: fault
            self.calls = 0

    def next_fault(self) -> str:
        with self._lock:
            self.calls += 1
            return self._fault(self.calls)

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """Return status, body and content type of the server's answer."""
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Content-Type", "")
        finally:
            connection.close()


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.next_fault()
            if fault == "slow":
                time.sleep(0.5)
            status, answer, kind = 500, b"oops", "text/plain"
            if fault != "500":
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                try:
                    found = proxy.forward(self.command, self.path, body, headers)
                except OSError:  # the server behind it is down
                    found = (502, b"bad gateway", "text/plain")
                if fault != "lost":
                    status, answer, kind = found
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2] if fault == "cut" else answer)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.uri = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield proxy
        server.shutdown()
        thread.join()
