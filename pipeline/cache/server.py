"""The process of a node's fetcher: a Unix socket for the readers on the node.

    python -m pipeline.cache.server FOLDER SOCKET CONNECTIONS PATIENCE_S

Clients connect to the Unix socket and send a JSON object a line:
    {"open": key, "limit": bytes}       the split's index is in FOLDER/key; answered by {} or {"error": text}
    {"plan": [[block, first, last]]}    the turns of the client between which a block is used, in the order of use
    {"at": turn}                        the client's turn
    {"want": block}                     answered when the block is in the cache, by {} or {"error": text}

It ends some seconds after its last client, and at once if another one serves the same socket.
"""

import fcntl
import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.cache.fetcher import Block, Fetcher
from pipeline.errors import UserError

T = TypeVar("T")


class _Handler(socketserver.StreamRequestHandler):
    """A thread for each client."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        fetcher, client = self.server.fetcher, None
        try:
            for line in self.rfile:
                message = json.loads(line)
                if client is None:
                    client = self._answered(fetcher.open, message["open"], message["limit"])
                    if client is None:
                        return
                elif "want" in message:
                    self._answered(fetcher.want, Block(client.key, message["want"]))
                else:
                    with fetcher.changed:
                        client.extend(message.get("plan", []))
                        client.turn = message.get("at", client.turn)
                        fetcher.changed.notify_all()
        except (ConnectionError, BrokenPipeError):
            pass
        finally:
            if client:
                fetcher.close(client)

    def _answered(self, action: Callable[..., T], *arguments: Any) -> T | None:
        """Run an action, send its outcome, and return its result; None if it failed."""
        result, answer = None, {}
        try:
            result = action(*arguments)
        except UserError as error:
            answer = {"error": str(error)}
        self.wfile.write(json.dumps(answer).encode() + b"\n")
        return result


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: str, fetcher: Fetcher):
        super().__init__(address, _Handler)
        self.fetcher = fetcher


def main() -> None:
    folder, socket, connections, patience_s = sys.argv[1:]
    with open(f"{socket}.lock", "w", encoding="utf-8") as held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another one serves this folder
            return
        Path(socket).unlink(missing_ok=True)  # of a fetcher that was killed
        Path(folder).mkdir(parents=True, exist_ok=True)
        fetcher = Fetcher(Path(folder), int(connections), float(patience_s))
        server = _Server(socket, fetcher)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetcher.run()
        Path(socket).unlink(missing_ok=True)
        os._exit(0)  # without waiting for requests in flight


if __name__ == "__main__":
    main()
