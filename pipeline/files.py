"""Files that appear whole or not at all, locks between processes, and file digests."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError

NUM_NAMED = 8  # the most values that a message lists
LOCK_POLL_S = 0.2
MAX_NAME_BYTES = 255  # of a file's name, on all common disks


@contextmanager
def whole(path: Path, *, is_shared: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears at `path` when the block ends, and only if it ends without an error.

    The content is written to `.<name>.partial` beside `path`, synced to the disk and renamed (a very long name is
    replaced by its digest). Parent folders are created.

    path: the final name. A file that is there is replaced.
    is_shared: several processes may write this path at the same time; each then uses its own partial file.

    Raises UserError if the disk is full, the folder is read-only, and the like.
    """
    partial = path.with_name(_partial_name(path.name, f".{os.getpid()}.partial" if is_shared else ".partial"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.filename not in (None, str(partial), str(path), str(path.parent)):
            raise  # the block failed to read another file
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _partial_name(name: str, end: str) -> str:
    """Return `.<name><end>`; of a name so long that this would be too long, a digest instead of the name."""
    if len(os.fsencode(name)) + len(end) >= MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}{end}"


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that replaces `path` when the block ends, and only if it ends without an error.

    The folder is `.<name>.partial` beside `path`. One that a killed process left there is removed first.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(finished: Path, path: Path) -> None:
    """Rename a finished folder to `path`, which is on the same disk; an older folder there is removed."""
    old = finished.with_name(f"{finished.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(old)
    finished.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str, *, is_shared: bool = False) -> None:
    """Write a UTF-8 file whole or not at all; see `whole`."""
    with whole(path, is_shared=is_shared) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any, *, indent: int | None = 1, is_shared: bool = False) -> None:
    """Write a JSON file whole or not at all; see `whole`."""
    write_text(path, json.dumps(values, indent=indent) + "\n", is_shared=is_shared)


def copy_file(source: Path, dest: Path) -> None:
    """Copy a file's bytes; `dest` appears whole or not at all, see `whole`."""
    with source.open("rb") as original, whole(dest) as copy:
        shutil.copyfileobj(original, copy)


@contextmanager
def lock(path: Path, what: str, patience_s: float = float("inf")) -> Iterator[bool]:
    """Hold a lock file, so that one process at a time runs the block. Yield whether another process had held it.

    The lock belongs to the process (fcntl), not to the open file, so loader processes that a worker forks do not
    inherit it. The system frees the lock of a process that was killed. It also works on most shared file systems.

    path: the lock file; it is created and stays.
    what: what the other process does, as a verb phrase for the message: "trains fcn32s already".
    patience_s: seconds to wait for the other process.

    Raises UserError if the other process holds the lock for longer than that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        has_waited = not _try_lock(file.fileno())
        if has_waited:
            file.seek(0)
            holder = file.read().decode("utf-8", "replace") or "another process"
            print(f"{holder} {what}; waiting until it ends ({path})", file=sys.stderr, flush=True)
            deadline = time.monotonic() + patience_s
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise UserError(f"{holder} still {what}; end it and run the same command again ({path})")
                time.sleep(LOCK_POLL_S)
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield has_waited


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(root: Path, folders: Iterable[str]) -> str:
    """Return the sha256 over the names and bytes of all Python files in folders (or files) below `root`."""
    digest = hashlib.sha256()
    for name in sorted(folders):
        entry = root / name
        for path in sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def and_more(values: Sequence[object], num_named: int = NUM_NAMED) -> str:
    """Return the first values as text, and how many more there are: "a, b and 3 more"."""
    rest = len(values) - num_named
    return ", ".join(map(str, values[:num_named])) + (f" and {rest} more" if rest > 0 else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 photo", "2 photos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
