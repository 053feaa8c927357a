"""The process of a node's fetcher: a Unix socket for the readers on the node.

    python -m pipeline.cache.server FOLDER SOCKET CONNECTIONS PATIENCE_S

Clients connect to the Unix socket and send a JSON object a line:
    {"open": key, "limit": bytes}       answered by {"folder": path, "is_open": boolean}; it is not open, and to be sent
                                        again, until the client has written the split's index to path/key
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
from pathlib import Path
from typing import Any

from pipeline.cache.fetcher import Block, Fetcher
from pipeline.errors import UserError


class _Handler(socketserver.StreamRequestHandler):
    """A thread for each client."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        fetcher, client = self.server.fetcher, None
        try:
            for line in self.rfile:
                if not line.endswith(b"\n"):  # the client was killed
                    return
                message = json.loads(line)
                if client is None:
                    client = fetcher.open(message["open"], message["limit"])
                    self._answer({"folder": str(fetcher.folder), "is_open": client is not None})
                elif "want" in message:
                    try:
                        fetcher.want(Block(client.key, message["want"]))
                        self._answer({})
                    except UserError as error:
                        self._answer({"error": str(error)})
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

    def _answer(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")


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
        fetcher = Fetcher(Path(folder), int(connections), float(patience_s))
        server = _Server(socket, fetcher)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetcher.run()
        Path(socket).unlink(missing_ok=True)
        os._exit(0)  # without waiting for requests in flight


if __name__ == "__main__":
    main()
