"""A TCP proxy in front of a server that counts requests, and stalls, cuts and refuses connections."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

CHUNK = 1 << 16


class Link:
    """num_requests: chunks that clients sent. Faults are set at any time:

    is_down: connections are closed at once.
    num_stalls: so many of the next answers stand still for stall_s.
    num_cuts: so many of the next answers end after their first chunk.
    """

    def __init__(self, target: int):
        self.target = target
        self.num_requests = 0
        self.is_down = False
        self.num_stalls = self.num_cuts = 0
        self.stall_s = 10.0
        self.port = 0

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.is_down:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                for ends, is_answer in (((client, server), False), ((server, client), True)):
                    threading.Thread(target=self.pump, args=(*ends, is_answer), daemon=True).start()

    def pump(self, source: socket.socket, dest: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if self.is_down:
                    break
                if not is_answer:
                    self.num_requests += 1
                elif self.num_stalls:
                    self.num_stalls -= 1
                    time.sleep(self.stall_s)
                elif self.num_cuts and len(data) > 2000:
                    self.num_cuts -= 1
                    dest.sendall(data[:1000])
                    break
                dest.sendall(data)
        for end in (source, dest):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()


@contextlib.contextmanager
def linked(target: int) -> Iterator[Link]:
    link = Link(target)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link.port = listener.getsockname()[1]
        threading.Thread(target=link.serve, args=(listener,), daemon=True).start()
        yield link
        listener.shutdown(socket.SHUT_RDWR)
