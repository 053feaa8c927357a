"""The readers' side of a node's cache: local files, and the fetcher's socket for blocks that are not there yet."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.fetcher import FREE_BYTES, block_path, cached_files
from pipeline.cache.index import INDEX, Index
from pipeline.errors import ShardError, UserError
from pipeline.surroundings import own_temp_folder

START_S = 30.0  # waited for a fetcher's start at least
POLL_S = 0.02
GB = 10**9
CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_", "HF_")  # variables of the environment that begin so

_started: "list[subprocess.Popen[bytes]]" = []  # kept, or Python would warn that they outlive their object


@dataclass(frozen=True)
class NodeCache:
    """The settings of a node's cache; see config.training.Cache."""

    folder: str | None = None
    gigabytes: float = 50.0
    connections: int = 16
    patience_s: float = 180.0

    @property
    def path(self) -> Path:
        if self.folder is None:
            return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "fcn"
        return Path(self.folder).expanduser().absolute()

    @property
    def limit(self) -> int:
        return int(self.gigabytes * GB)

    def require_folder(self) -> None:
        """Make the folder; UserError if it cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            reason = None if os.access(self.path, os.W_OK) else os.strerror(errno.EACCES)
        except OSError as error:
            reason = error.strerror
        if reason:
            raise UserError(
                f"{self.path} cannot hold blocks of a store: {reason}; set run.cache.folder to a folder that can be "
                "written, on a disk of this machine"
            )


class Blocks:
    """A split's blocks on this node. It may be used after a fork, and holds no network client.

    folder: where this process looks for them; the fetcher it asks may have another than the cache's own.
    reads, misses: samples read, and those whose block was not there yet, by all processes forked from this one.
    """

    def __init__(self, cache: NodeCache, index: Index):
        self.cache, self.index = cache, index
        self.folder = cache.path / index.key
        self.reads = multiprocessing.get_context("fork").Value("q")
        self.misses = multiprocessing.get_context("fork").Value("q")
        self._connections: dict[int, Connection] = {}  # by process
        self._lock = threading.Lock()

    def read(self, block: int, offset: int, size: int) -> bytes:
        """Return bytes of a block, fewer if its file is damaged; wait until it is there.

        offset: in the shard.
        """
        start, has_missed = offset - int(self.index.start[block]), False
        while True:
            try:
                descriptor = os.open(block_path(self.folder, block), os.O_RDONLY)
                try:
                    data = os.pread(descriptor, size, start)
                finally:
                    os.close(descriptor)
                break
            except (FileNotFoundError, NotADirectoryError):
                has_missed = True
                self.fetch(block)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ESTALE):
                    raise
                data = b""  # the disk lost it, or a server of files did
                break
        with self.reads:
            self.reads.value += 1
        if has_missed:
            with self.misses:
                self.misses.value += 1
        return data

    def fetch(self, block: int) -> None:
        """Return when a block is in the cache; ShardError if the store does not give it."""
        with self._lock:
            connection = self._connections.get(os.getpid())
            if not connection:
                self._connections = {os.getpid(): (connection := Connection(self.cache, self.index))}
        connection.ask({"want": block})
        self.folder = connection.folder

    def interrupt(self) -> None:
        """End the waiting of this process's threads by a ShardError. Blocks can be fetched again afterwards."""
        with self._lock:
            connection = self._connections.pop(os.getpid(), None)
        if connection:
            connection.interrupt()

    @property
    def counts(self) -> tuple[int, int]:
        """Reads and misses."""
        return self.reads.value, self.misses.value

    def drop(self, block: int) -> None:
        """Remove a block that was found damaged; it will be fetched again."""
        block_path(self.folder, block).unlink(missing_ok=True)

    def has(self, block: int) -> bool:
        return block_path(self.folder, block).exists()

    def require_room(self, num_blocks: float) -> None:
        """Raise UserError unless so many blocks fit into the cache, within its limit and the disk's free space."""
        needed = int(self.index.num_bytes * min(1, num_blocks / len(self.index)))
        self.cache.require_folder()
        present = sum(status.st_size for _, status in cached_files(self.cache.path))
        room = min(self.cache.limit, shutil.disk_usage(self.cache.path).free - FREE_BYTES + present)
        if needed > room:
            raise UserError(
                f"{self.index.where}: {needed / GB:.2f} of its {self.index.num_bytes / GB:.2f} GB must be in "
                f"{self.cache.path} at a time, which has room for {room / GB:.2f}; raise run.cache.gigabytes (now "
                f"{self.cache.gigabytes:g}), free the disk, or set train.order to blocks, which needs less"
            )


class Plan:
    """The uses of blocks to come, which the fetcher fetches ahead of `advance`. To be closed.

    chunks: yields (T, K) the blocks that T turns use. One chunk more than the current one is known to the fetcher.
    """

    def __init__(self, blocks: Blocks, chunks: Iterator[NDArray[np.integer]]):
        self._connection = Connection(blocks.cache, blocks.index)
        self._chunks = chunks
        self._turn = self._planned = 0
        self._ends: list[int] = []
        for _ in range(2):
            self._extend()

    def _extend(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            return
        used, width = chunk.ravel(), chunk.shape[1]
        numbers, first = np.unique(used, return_index=True)
        last = used.size - 1 - np.unique(used[::-1], return_index=True)[1]
        order = np.argsort(first)
        turns = self._planned + np.stack([first, last]) // width
        plan = np.stack([numbers, *turns])[:, order].T.tolist()
        self._connection.tell({"plan": plan, "at": self._turn})
        self._planned += len(chunk)
        self._ends.append(self._planned)

    def advance(self) -> None:
        """Begin the next turn."""
        self._turn += 1
        if self._ends and self._turn >= self._ends[0]:
            self._ends.pop(0)
            self._extend()
        self._connection.tell({"at": self._turn})

    def close(self) -> None:
        self._connection.close()


class Connection:
    """A connection to the node's fetcher, which is started if there is none, and again if it was killed.

    folder: of the split's blocks.
    """

    def __init__(self, cache: NodeCache, index: Index):
        self._cache, self._index = cache, index
        self.folder = cache.path / index.key
        self._socket: socket.socket | None = None
        self._plans: list[dict[str, Any]] = []  # for a new fetcher
        self._asking = threading.Lock()
        self._is_interrupted = False

    def ask(self, message: dict[str, Any]) -> None:
        """Send a message and wait for the answer; ShardError if it is one. Threads take turns."""
        with self._asking:
            answer = self._sent(message, self._answer)
        if error := answer.get("error"):
            raise ShardError(error)

    def interrupt(self) -> None:
        """End `ask` in other threads by a ShardError, for good."""
        self._is_interrupted = True
        if opened := self._socket:
            with suppress(OSError):  # its thread may have closed it
                opened.shutdown(socket.SHUT_RDWR)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that has no answer."""
        self._sent(message, dict)
        if "plan" in message:
            self._plans = [*self._plans[-1:], message]

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        self.close()

    def _sent(self, message: dict[str, Any], answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Send a message and return what `answer` does, also if the fetcher was killed."""
        deadline_s = time.monotonic() + self._cache.patience_s
        while True:
            try:
                if not self._socket:
                    self._open()
                self._send(message)
                return answer()
            except OSError as error:
                self.close()
                if self._is_interrupted or time.monotonic() > deadline_s:
                    raise ShardError(f"the fetcher of {self._cache.path} gives no answer: {error}") from error
                time.sleep(POLL_S)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._socket
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _answer(self) -> dict[str, Any]:
        assert self._socket
        line = b""
        while not line.endswith(b"\n"):
            self._refuse_interrupted()
            part = self._socket.recv(65536)
            if not part:
                raise ConnectionError("no answer")
            line += part
        return json.loads(line)

    def _refuse_interrupted(self) -> None:
        if self._is_interrupted:
            raise ConnectionError("interrupted")

    def _open(self) -> None:
        """Connect, and send index and plans."""
        self._socket = self._connected()
        for _ in range(2):
            self._send({"open": self._index.key, "limit": self._cache.limit})
            answer = self._answer()
            self.folder = Path(answer["folder"]) / self._index.key
            if answer["is_open"]:
                break
            self._index.write(self.folder / INDEX)
        else:
            raise ShardError(f"the fetcher of {self._cache.path} cannot read {self.folder / INDEX}")
        for plan in self._plans:
            self._send(plan)

    def _connected(self) -> socket.socket:
        """Return a connection to the fetcher; wait while it starts, which takes long on a busy machine."""
        self._cache.require_folder()
        fetcher, deadline_s = None, time.monotonic() + max(START_S, self._cache.patience_s)
        while True:
            self._refuse_interrupted()
            opened = socket.socket(socket.AF_UNIX)
            try:
                opened.connect(self._address)
                return opened
            except OSError as error:
                opened.close()
                if time.monotonic() > deadline_s:
                    raise ShardError(f"no fetcher for {self._cache.path}: {error}") from error
            if fetcher and (fetcher.poll() or 0) > 0:
                raise ShardError(
                    f"the fetcher of {self._cache.path} ended with exit code {fetcher.returncode}; see its own message"
                )
            if fetcher is None or fetcher.returncode is not None:
                fetcher = self._start()
            time.sleep(POLL_S)

    @cached_property
    def _address(self) -> str:
        """The socket: a short path, which a socket must have, on a disk of this machine."""
        # A fetcher has the credentials of the process that started it
        environment = sorted(item for item in os.environ.items() if item[0].startswith(CREDENTIALS))
        name = json.dumps([str(self._cache.path), environment])
        return str(own_temp_folder() / sha256(name.encode()).hexdigest()[:16])

    def _start(self) -> "subprocess.Popen[bytes]":
        """Start a fetcher; it ends by itself, at once if there is another. Ctrl-C in the terminal does not reach it."""
        cache = self._cache
        arguments = [cache.path, self._address, cache.connections, cache.patience_s]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cache.server", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # or a shell that reads this process's output would wait for the fetcher
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
        _started.append(process)
        return process
