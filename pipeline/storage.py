"""Files of a folder on this machine or in an S3 bucket, by the same few verbs. No other module knows which it is.

Keys, region and endpoint of S3 come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL) or an instance's role, never from a profile.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from pipeline.errors import ShardError

S3 = "s3://"
BLOCK = 2**20
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0


class Entry(NamedTuple):
    """What a listing says of a file: its size in bytes, and when it last changed."""

    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Folder:
    """A flat folder: a path, or s3://bucket/prefix. Errors are ShardErrors that name file and reason."""

    where: str

    @property
    def is_remote(self) -> bool:
        return self.where.startswith(S3)

    def name(self, file: str) -> str:
        """The whole name of a file in it, for messages and for `_path`."""
        return f"{self.where.rstrip('/')}/{file}"

    def list(self) -> dict[str, Entry]:
        """Whatever lies directly in it; nothing if it is not there."""
        system, path = _system(self.is_remote), _path(self.where)
        with _named(self.where, "listed"):
            found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return {info.base_name: Entry(info.size or 0, info.mtime_ns) for info in found}

    def read(self, file: str, offset: int = 0, size: int | None = None) -> bytes:
        """The bytes of a file from an offset on: `size` of them, fewer if it ends there, or all."""
        with _named(self.name(file), "read"):
            if size is None:
                with _opened(self.name(file)) as opened:
                    return opened.read_at(opened.size() - offset, offset)
            opened = (_kept_open if self.is_remote else _opened)(self.name(file))
            return opened.read_at(size, offset)

    def sha256(self, file: str) -> str:
        digest = hashlib.sha256()
        with _named(self.name(file), "read"), _opened(self.name(file)) as opened:
            while block := opened.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def put(self, finished: Path, file: str) -> None:
        """Moves a finished local file, which must be on the same disk if the folder is local, into this folder."""
        with _named(self.name(file), "written"):
            if self.is_remote:
                with (
                    finished.open("rb") as source,
                    _system(True).open_output_stream(_path(self.name(file))) as dest,
                ):
                    shutil.copyfileobj(source, dest, BLOCK)
                finished.unlink()
            else:
                Path(self.where).mkdir(parents=True, exist_ok=True)
                with finished.open("rb") as source:
                    os.fsync(source.fileno())
                finished.replace(self.name(file))

    def remove(self, file: str) -> None:
        with _named(self.name(file), "removed"):
            _system(self.is_remote).delete_file(_path(self.name(file)))

    def become(self, dest: "Folder", last: str) -> None:
        """Replaces dest by this folder, which is gone then. The file `last` leaves dest first and comes last.

        On this machine by a rename. A bucket has none: the files are copied there one by one, each whole or not at
        all, and whoever looks for `last` first never sees half.
        """
        with _named(dest.where, "written"):
            if not dest.is_remote:
                _swap(Path(self.where), Path(dest.where))
                return
            system, names = _system(True), sorted(self.list(), key=lambda name: (name == last, name))
            for name in sorted(dest.list(), key=lambda name: (name != last, name)):
                dest.remove(name)
            for name in names:
                system.move(_path(self.name(name)), _path(dest.name(name)))
            system.delete_dir(_path(self.where))


def _swap(new: Path, dest: Path) -> None:
    old = new.with_name(f"{new.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    dest.parent.mkdir(parents=True, exist_ok=True)
    if dest.exists():
        dest.rename(old)
    new.rename(dest)
    shutil.rmtree(old, ignore_errors=True)


@lru_cache(maxsize=2)
def _system(is_remote: bool) -> fs.FileSystem:
    if not is_remote:
        return fs.LocalFileSystem()
    return fs.S3FileSystem(
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
    )


def _path(where: str) -> str:
    return where.removeprefix(S3)


def _opened(name: str) -> Any:
    return _system(name.startswith(S3)).open_input_file(_path(name))


# To open an object is a request of its own; a shard is read many times, and never changes under its manifest. Such a
# file may be used after a fork
_kept_open = lru_cache(maxsize=256)(_opened)


@contextmanager
def _named(name: str, what: str) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one sentence."""
    try:
        yield
    except ShardError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise ShardError(f"{name} cannot be {what}: {reason}") from error
