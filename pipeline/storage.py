"""Files of a folder on this machine or in a store, behind one interface; no other module distinguishes them.

Stores: s3://, gs:// and az:// by pyarrow's own clients; hf://, http:// and https://, which are read only, by fsspec.
Keys, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_KEY; HF_TOKEN) or an
instance's role, never from a profile.
"""

import errno
import hashlib
import os
import random
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from pipeline.errors import ShardError

S3 = "s3://"
UNLISTED = ("http", "https")  # servers that cannot list a folder
READ_ONLY = (*UNLISTED, "hf")
BLOCK_BYTES = 2**20
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0
OPENING_S = 2.0
PAUSES_S = (0.1, 0.4)  # before a request is repeated

T = TypeVar("T")


@dataclass(frozen=True)
class Folder:
    """A flat folder of files. Errors are ShardErrors that name file and reason.

    where: a path, or a URL such as s3://bucket/prefix.
    """

    where: str

    @property
    def is_remote(self) -> bool:
        return "://" in self.where

    @property
    def can_list(self) -> bool:
        return scheme_of(self.where) not in UNLISTED

    @property
    def can_write(self) -> bool:
        return scheme_of(self.where) not in READ_ONLY

    def name(self, file: str) -> str:
        """Return the full path or URL of a file in it."""
        return f"{self.where.rstrip('/')}/{file}"

    def list(self) -> dict[str, fs.FileInfo]:
        """Return the files directly in it by name, with `size` in bytes and `mtime_ns`; none if it does not exist."""
        with _named(self.where, "listed"):
            selector = fs.FileSelector(_path(self.where), allow_not_found=True)
            files = again(lambda: system(scheme_of(self.where)).get_file_info(selector))
            return {file.base_name: file for file in files}

    def read(self, file: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return a file's bytes from an offset on.

        size: bytes to read, fewer if the file ends before; all if None.

        The ShardError of a server that cannot send a part of a file is caused by an UnsupportedOperation.
        """
        with _named(self.name(file), "read"):
            if size is None:
                return again(lambda: self._read_from(file, offset))
            if isinstance(
                system(scheme_of(self.where)), fs.PyFileSystem
            ):  # one request; opened, it would be several
                store, path = _fsspec(scheme_of(self.where)), _path(self.name(file))
                data = store.cat_file(path, start=offset, end=offset + size)
                if len(data) > size:
                    reason = "its server sends whole files, not ranges of bytes"
                    remedy = "put the files on one that does, such as nginx, or on a disk"
                    raise ShardError(f"{self.name(file)}: {reason}; {remedy}") from UnsupportedOperation(
                        reason
                    )
                return data
            opened = (_open_once if self.is_remote else _open)(self.name(file))
            return opened.read_at(size, offset)

    @contextmanager
    def stream(self, file: str) -> Iterator[Any]:
        """Open a file to read it from the first to the last byte."""
        with _named(self.name(file), "read"):
            opened = system(scheme_of(self.where)).open_input_stream(_path(self.name(file)), compression=None)
        with opened:
            yield opened

    def _read_from(self, file: str, offset: int) -> bytes:
        with _open(self.name(file)) as opened:
            return opened.read_at(opened.size() - offset, offset)

    def sha256(self, file: str) -> str:
        """Return the sha256 of a file's bytes, 64 hex digits."""
        digest = hashlib.sha256()
        with _named(self.name(file), "read"), _open(self.name(file)) as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def put(self, finished: Path, file: str) -> None:
        """Move a finished local file into this folder; if the folder is local, both are on the same disk."""
        with _named(self.name(file), "written"):
            if self.is_remote:
                with (
                    finished.open("rb") as source,
                    system(scheme_of(self.where)).open_output_stream(_path(self.name(file))) as dest,
                ):
                    shutil.copyfileobj(source, dest, BLOCK_BYTES)
                finished.unlink()
            else:
                Path(self.where).mkdir(parents=True, exist_ok=True)
                finished.replace(self.name(file))

    def remove(self, file: str) -> None:
        with _named(self.name(file), "removed"):
            system(scheme_of(self.where)).delete_file(_path(self.name(file)))

    def move_to(self, dest: "Folder", last: str) -> None:
        """Replace `dest` in a bucket by this folder of the same bucket, which is then gone.

        Files are copied one by one, each whole or not at all. The file `last` leaves dest first and arrives last, so a
        reader that looks for it first never sees a mixture.
        """
        with _named(dest.where, "written"):
            store = system(scheme_of(self.where))
            names = sorted(self.list(), key=lambda name: (name == last, name))
            for name in sorted(dest.list(), key=lambda name: (name != last, name)):
                dest.remove(name)
            for name in names:
                store.move(_path(self.name(name)), _path(dest.name(name)))
            store.delete_dir(_path(self.where))


@lru_cache(maxsize=8)
def system(scheme: str) -> fs.FileSystem:
    """Return pyarrow's file system of a URL's scheme; of this machine if it is empty."""
    if not scheme:
        return fs.LocalFileSystem()
    if scheme == "s3":
        return fs.S3FileSystem(
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
        )
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_TIMEOUT_S))
    if scheme == "az":
        account = os.environ.get("AZURE_STORAGE_ACCOUNT", "")
        return fs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_KEY"))
    return fs.PyFileSystem(fs.FSSpecHandler(_fsspec(scheme)))


@lru_cache(maxsize=8)
def _fsspec(scheme: str) -> Any:
    import fsspec  # takes a tenth of a second

    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:  # fsspec names the package
        raise ShardError(f"{scheme}:// cannot be read: {error}") from error


def scheme_of(where: str) -> str:
    """Return "s3" of s3://bucket/prefix, and "" of a path."""
    return where.partition("://")[0] if "://" in where else ""


def _path(where: str) -> str:
    """Return what a store's client calls a file; to fsspec's http client that is the URL."""
    return where if scheme_of(where) in UNLISTED else where.partition("://")[2] if "://" in where else where


def _open(name: str) -> Any:
    return system(scheme_of(name)).open_input_file(_path(name))


# Opening an object costs a request of its own. A shard is read many times and never changes under its manifest
_open_cached = lru_cache(maxsize=4096)(_open)
# A reader calls it when bytes differ from the manifest: the shards may have been replaced under the same names
forget_opened = _open_cached.cache_clear
_opening: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def _open_once(name: str) -> Any:
    lock = _opening[name]  # or threads that begin with the same file would each open it
    is_held = lock.acquire(timeout=OPENING_S)  # an opening that stalls does not hold up the others
    try:
        return _open_cached(name)
    finally:
        if is_held:
            lock.release()


def again(request: Callable[[], T]) -> T:
    """Return the outcome of a request, repeated if a connection breaks."""
    for pause_s in PAUSES_S:
        try:
            return request()
        except Exception as error:  # stores' clients have their own
            if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
                raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    return request()


@contextmanager
def _named(name: str, action: str) -> Iterator[None]:
    """Turn an error of the file system into a ShardError: "<name> cannot be <action>: <reason>"."""
    try:
        yield
    except ShardError:
        raise
    except FileNotFoundError as error:
        raise ShardError(f"{name} cannot be {action}: {os.strerror(errno.ENOENT)}") from error
    except Exception as error:  # ValueError: a name that no file can have
        if (
            not isinstance(error, OSError | ValueError) and "://" not in name
        ):  # fsspec's clients have their own
            raise
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise ShardError(f"{name} cannot be {action}: {reason}") from error
