"""The fetcher of a node: the one process that reads blocks from stores and removes them from the cache.

Blocks are fetched in the order of their next use. To make room, the block whose next use is farthest is removed
(Belady); one in no plan first. A plan's blocks are never removed for one that is used later than they are.
"""

import errno
import fcntl
import itertools
import math
import os
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.cache.download import Downloader
from pipeline.cache.index import INDEX, Index
from pipeline.errors import ShardError, UserError

LINGER_S = 5.0
FREE_BYTES = 2**28  # left on the disk for others
FAILURE_S = 30.0  # for which a block that failed is not tried again


class Block(NamedTuple):
    """A block of a split: the split's key, and the number of the block."""

    key: str
    number: int


class Client:
    """A connection: its split, its limit of the cache's bytes, and its plan. All blocks are of its split.

    queue: (first turn, block) of the plan that were not looked at yet.
    uses: by block, the first and the last turn of each use to come.
    """

    def __init__(self, key: str, index: Index, limit: int):
        self.key, self.index, self.limit = key, index, limit
        self.turn = 0
        self.queue: deque[tuple[int, Block]] = deque()
        self.uses: dict[Block, deque[tuple[int, int]]] = defaultdict(deque)

    def extend(self, plan: list[tuple[int, int, int]]) -> None:
        for number, first, last in plan:
            block = Block(self.key, number)
            self.queue.append((first, block))
            self.uses[block].append((first, last))

    def turns_to(self, block: Block) -> float:
        """Return the turns until a block is used; 0 from its first to its last use, infinity if it is not."""
        uses = self.uses.get(block)
        while uses and uses[0][1] < self.turn:
            uses.popleft()
        return max(0, uses[0][0] - self.turn) if uses else math.inf


class Fetcher:
    """The blocks of a cache folder, the clients' wishes, and the threads that fetch.

    folder: of the blocks: the cache's own, or one in it if the cache's has another fetcher, see `_held`.
    """

    def __init__(self, cache: Path, connections: int, patience_s: float):
        self.folder, self._lock = _held(cache)
        self.connections = connections
        self.changed = threading.Condition()  # guards everything below
        self.clients: list[Client] = []
        self.indices: dict[str, Index] = {}
        self.sizes = _scan(self.folder)  # of whole blocks, the oldest first
        self.num_bytes = sum(self.sizes.values())  # with those of blocks in flight
        self.in_flight: set[Block] = set()
        self.wanted: dict[Block, Future[None]] = {}
        self.failed: dict[Block, tuple[float, UserError]] = {}
        self._victims: list[Block] = []  # the best to remove last
        self._victims_until_s = 0.0
        self._downloader = Downloader(connections, patience_s)
        self._pool = ThreadPoolExecutor(connections)

    def path(self, block: Block) -> Path:
        return block_path(self.folder / block.key, block.number)

    def open(self, key: str, limit: int) -> Client | None:
        """Return a new client of a split; None if its index is not in the folder."""
        with self.changed:
            if key not in self.indices:
                index = Index.read(self.folder / key / INDEX)
                if not index:
                    return None
                self.indices[key] = index
            client = Client(key, self.indices[key], limit)
            self.clients.append(client)
            return client

    def close(self, client: Client) -> None:
        with self.changed:
            self.clients.remove(client)
            self.changed.notify_all()

    def want(self, block: Block) -> None:
        """Return when the block is in the cache; UserError if it cannot be read."""
        with self.changed:
            failed_s, error = self.failed.pop(block, (-math.inf, UserError()))
            if time.monotonic() - failed_s < FAILURE_S:
                raise error
            if block not in self.in_flight:
                if self.path(block).exists():
                    return
                self.num_bytes -= self.sizes.pop(block, 0)  # removed by its reader, because it was damaged
            future = self.wanted.setdefault(block, Future())
            self.changed.notify_all()
        future.result()

    def run(self) -> None:
        """Fetch until there was no client for LINGER_S."""
        last_client_s = time.monotonic()
        with self.changed:
            while self.clients or time.monotonic() - last_client_s < LINGER_S:
                block = self._next() if len(self.in_flight) < self.connections else None
                if block:
                    self.in_flight.add(block)
                    self.num_bytes += self._size(block)
                    self._pool.submit(self._fetch, block)
                else:
                    self.changed.wait(LINGER_S / 5)
                if self.clients:
                    last_client_s = time.monotonic()

    def _size(self, block: Block) -> int:
        index = self.indices[block.key]
        return int(index.end[block.number] - index.start[block.number])

    def _next(self) -> Block | None:
        """Return the block to fetch now: one that a reader waits for, or the next of a plan if there is room.

        For a reader, even blocks in use make room: they are fetched again, and the cache stays within its limit.
        """
        waiting = [block for block in self.wanted if block not in self.in_flight]
        if waiting:
            has_room = self._make_room(self._size(waiting[0]), -1)
            return waiting[0] if has_room or not self.in_flight else None
        due: list[tuple[int, Block]] = []
        for client in self.clients:
            while client.queue and (
                (block := client.queue[0][1]) in self.sizes
                or block in self.in_flight
                or block in self.failed  # it is tried again when a reader waits for it
                or client.turns_to(block) == math.inf
            ):
                client.queue.popleft()
            if client.queue:
                due.append((client.queue[0][0] - client.turn, client.queue[0][1]))
        if not due:
            return None
        turns, block = min(due)
        return block if self._make_room(self._size(block), max(0, turns)) else None

    def _make_room(self, size: int, turns: float) -> bool:
        """Remove blocks that are used later than in so many turns, until so many bytes fit; return whether they do.

        turns: 0 spares blocks in use, -1 none.
        """
        room = shutil.disk_usage(self.folder).free - FREE_BYTES + self.num_bytes
        limit = min(max((client.limit for client in self.clients), default=0), room)
        while self.num_bytes + size > limit:
            if not self._victims and (turns < 0 or time.monotonic() >= self._victims_until_s):
                self._find_victims()
            if not self._victims or self._turns_to(self._victims[-1]) <= turns:
                self._victims = []
                return False
            block = self._victims.pop()
            if block in self.sizes:
                self._remove(block)
        return True

    def _remove(self, block: Block) -> None:
        self.path(block).unlink(missing_ok=True)
        self.num_bytes -= self.sizes.pop(block)
        has_client = any(client.key == block.key for client in self.clients)
        if not has_client and not any(other.key == block.key for other in {*self.sizes, *self.in_flight}):
            self.indices.pop(block.key, None)
            shutil.rmtree(self.folder / block.key, ignore_errors=True)  # of an old split, with its index

    def _find_victims(self) -> None:
        """Order the blocks by their next use; for plans, seldom enough to take a tenth of the time at most."""
        begun_s = time.monotonic()
        # Of blocks in no plan, the one that came first goes first
        self._victims = sorted(reversed(self.sizes), key=self._turns_to)
        self._victims_until_s = time.monotonic() + 10 * (time.monotonic() - begun_s)

    def _turns_to(self, block: Block) -> float:
        turns = [client.turns_to(block) for client in self.clients if client.key == block.key]
        return min(turns, default=math.inf)

    def _fetch(self, block: Block) -> None:
        index, number = self.indices[block.key], block.number
        error: UserError | None = None
        try:
            start, end = int(index.start[number]), int(index.end[number])
            data = self._downloader.read(
                str(index.where),
                str(index.files[index.file_of[number]]),
                start,
                end,
                lambda data: index.is_intact(number, data),
            )
            _put(self.path(block), data)
        except UserError as failure:
            error = failure
        except OSError as failure:
            error = ShardError(f"{self.path(block)} cannot be written: {failure.strerror}; see run.cache")
        except Exception as failure:  # its readers wait for an answer, whatever happened
            error = ShardError(f"{index.name(number)} was not fetched: {failure!r}")
        with self.changed:
            self.in_flight.remove(block)
            if error:
                self.num_bytes -= self._size(block)
            else:
                self.sizes[block] = self._size(block)
            if future := self.wanted.pop(block, None):
                future.set_exception(error) if error else future.set_result(None)
            elif error:
                self.failed[block] = (time.monotonic(), error)
            self.changed.notify_all()


def _held(cache: Path) -> tuple[Path, IO[str]]:
    """Return a folder of blocks that no other process has, and its lock, held until the process ends.

    It is the cache's own folder, unless a fetcher of other credentials, another user, container or node has it, which
    would remove what this one's readers need. The next one has cache/fetcher-2, and so on.
    """
    for number in itertools.count(1):
        folder = cache if number == 1 else cache / f"fetcher-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(BlockingIOError, PermissionError):
            lock = (folder / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (
                    errno.ENOLCK,
                    errno.ENOSYS,
                    errno.ENOTSUP,
                ):  # some shared disks have no locks
                    raise
            return folder, lock
    raise AssertionError


def block_path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.block"


def _put(path: Path, data: bytes) -> None:
    """Write a block at once. It is not synced: readers compare it with the manifest and have it fetched again."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def cached_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of whole blocks in a cache. One that another process removes meanwhile is left out."""
    for path in folder.glob("*/*.block"):
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _scan(folder: Path) -> dict[Block, int]:
    """Return the size of every block in the folder, the oldest first; remove unfinished ones."""
    for path in folder.glob("*/.*.block*"):
        path.unlink(missing_ok=True)
    found = sorted(
        (status.st_mtime, Block(path.parent.name, int(path.stem)), status.st_size)
        for path, status in cached_files(folder)
    )
    return {block: size for _, block, size in found}
