"""A file on its way: what has come of it so far, kept between runs, and the one step to its final name."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.download.checksum import Checksum, digests
from pipeline.download.limits import MirrorError
from pipeline.progress import interval_s

SPARE_BYTES = 64 * 2**20  # left free on the disk for logs and notes


@dataclass(frozen=True)
class Part:
    """What has come so far from one URL, and a note beside it that says of which version of the file."""

    path: Path
    source: str  # URL without its secrets, and the checksum
    name: str  # of the file it will be

    @classmethod
    def of(cls, part_dir: Path, name: str, url: str, checksum: Checksum) -> "Part":
        """The part of one mirror; `url` is without secrets, so that a new token goes on with the same part."""
        source = f"{url} {checksum}"
        path = part_dir / f"{name}.{hashlib.sha256(source.encode()).hexdigest()[:8]}.part"
        return cls(path, source, name)

    @property
    def note_path(self) -> Path:
        """Where the note lies."""
        return self.path.with_suffix(".json")

    def size(self) -> int:
        """How many bytes have come."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> tuple[str, int | None]:
        """The validator ('' if the part can't be resumed) and the whole file's bytes (None: unknown)."""
        try:
            note = json.loads(self.note_path.read_text())
            if note["source"] == self.source and self.size() > 0:
                return str(note["validator"]), note["bytes"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # absent or damaged: the part is of unknown origin, so it is not used
        return "", None

    def begin(self, validator: str, num_bytes: int | None) -> None:
        """Starts again from 0. The old bytes go before the new note comes, so no kill can mix the two."""
        self.path.write_bytes(b"")
        note = {"source": self.source, "validator": validator, "bytes": num_bytes}
        self.note_path.write_text(json.dumps(note))

    def drop(self) -> None:
        """Forgets what has come."""
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)

    def check_room(self, total: int | None, max_bytes: int) -> None:
        """Refuses a file known to be too large for the caller or for the disk, before any of it is written."""
        if total is None:
            return
        if total > max_bytes:
            raise MirrorError(f"announces {total} bytes, more than the {max_bytes} expected at most")
        free = shutil.disk_usage(self.path.parent).free
        needed = total - self.size() + SPARE_BYTES  # the part is gone on with, or overwritten
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", str(self.path.parent))

    def bar(self, total: int | None, offset: int) -> "tqdm[Any]":
        """Shows how much of `total` bytes has come, `offset` of them before."""
        progress = {"total": total, "initial": offset, "desc": self.name, "mininterval": interval_s()}
        return tqdm(**progress, unit="B", unit_scale=True)


def place(part: Path, dest: Path) -> None:
    """Moves a verified part to its final name in one step, so that no other content is ever seen there."""
    with part.open("rb") as file:
        os.fsync(file.fileno())  # else a power cut can leave the name without the bytes
    try:
        part.replace(dest)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        arriving = dest.with_name(f".{dest.name}.arriving")  # the parts are on another disk
        try:
            shutil.copyfile(part, arriving)
            assert digests(arriving) == digests(part), f"the copy of {part} differs from it"
            place(arriving, dest)
        finally:
            arriving.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Waits until no other process makes the same thing. The system frees the lock of a killed process."""
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is at the same work, waiting for it ({lock})", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
