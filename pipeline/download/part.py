"""A part: the bytes of one URL that have arrived so far, kept between runs."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.download.checksum import Checksum
from pipeline.download.mirror import MirrorError, RetryError
from pipeline.files import write_json
from pipeline.progress import bytes_bar

SPARE_BYTES = 64 * 2**20  # left free on the disk for logs and notes


@dataclass(frozen=True)
class Part:
    """The bytes of one URL that have arrived so far, and a note of which version of the file they are.

    path: the bytes; the note lies beside it as JSON.
    source: the URL without its secrets, and the checksum.
    name: the file's final name.
    """

    path: Path
    source: str
    name: str

    @classmethod
    def of(cls, dest: Path, url: str, checksum: Checksum) -> "Part":
        """Return the part of one mirror, beside `dest`.

        url: without secrets, so that a part is resumed when only a token is new.
        """
        source = f"{url} {checksum}"
        digits = hashlib.sha256(source.encode()).hexdigest()[:8]
        return cls(dest.with_name(f"{dest.name}.{digits}.part"), source, dest.name)

    @property
    def note_path(self) -> Path:
        return self.path.with_suffix(".json")

    def size(self) -> int:
        """Return how many bytes have arrived."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> tuple[str, int | None]:
        """Return the validator ('' if the part cannot be resumed) and the whole file's bytes (None: unknown)."""
        try:
            note = json.loads(self.note_path.read_text(encoding="utf-8"))
            if note["source"] == self.source and self.size() > 0:
                return str(note["validator"]), note["bytes"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # absent or damaged: the part is of unknown origin, so it is not used
        return "", None

    def begin(self, validator: str, num_bytes: int | None) -> None:
        """Start again from 0. The old bytes go before the new note comes, so no kill can mix the two."""
        self.path.write_bytes(b"")
        write_json(self.note_path, {"source": self.source, "validator": validator, "bytes": num_bytes})

    def drop(self) -> None:
        """Remove the bytes and the note."""
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)

    def move_to(self, dest: Path) -> None:
        """Give the verified bytes their final name in one step, so that no other content is ever seen there."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the name without the bytes
        self.path.replace(dest)

    def check_room(self, total: int | None, max_bytes: int) -> None:
        """Refuse a file that is too large for the caller or for the disk, before any of it is written.

        total: bytes of the whole file; None if unknown.
        """
        if total is None:
            return
        if total > max_bytes:
            raise MirrorError(f"announces {total} bytes, more than the {max_bytes} expected at most")
        free = shutil.disk_usage(self.path.parent).free
        needed = total - self.size() + SPARE_BYTES  # the part is resumed, or overwritten
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", str(self.path.parent))

    @contextmanager
    def writing(self, offset: int, total: int | None, max_bytes: int) -> Iterator[Callable[[bytes], None]]:
        """Give a function that writes the next chunk, from byte `offset` on.

        total: bytes of the whole file; None if unknown. RetryError if fewer have arrived when the block ends.
        max_bytes: largest size where `total` is unknown. MirrorError as soon as more arrive; the part is dropped.
        """
        limit = max_bytes if total is None else total
        size = offset
        with self.path.open("r+b") as file, bytes_bar(total, self.name, offset) as bar:
            file.seek(offset)

            def write(chunk: bytes) -> None:
                nonlocal size
                size += len(chunk)
                if size > limit:
                    self.drop()
                    raise MirrorError(f"sends more than the {limit} bytes announced or expected")
                file.write(chunk)
                file.flush()  # to the system, which keeps it if this process is killed
                bar.update(len(chunk))

            yield write
        if total is not None and size < total:
            raise RetryError(f"ended after {size} of {total} bytes")
