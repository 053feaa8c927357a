"""Copy files behind every URL but http, as fsspec reads them: s3://, gs://, az://, hdfs://, file:// and more.

Keys and endpoints come from where each service keeps them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on), never
from the URL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper

from pipeline import storage
from pipeline.download.mirror import MirrorError, RetryError
from pipeline.download.part import Part

CHUNK_BYTES = 2**20


def copy(url: str, part: Part, max_bytes: int) -> int:
    """Add the missing bytes of a file to the part; return how many bytes of earlier tries were kept.

    A part is resumed only if the store describes the file as it did then: size, time, ETag.
    """
    with _store_errors():
        store, path = _locate(url)
        info = store.info(path)
        version, size = store.ukey(path), info["size"]
    if info["type"] != "file":  # opening a pipe would wait for ever
        raise MirrorError(f"is not a file but a {info['type']}")
    offset = part.size() if part.note() == (version, size) else 0
    part.check_room(size, max_bytes)
    if not offset:
        part.begin(version, size)
    with _store_errors():
        source = store.open(path, "rb")
    with source, part.writing(offset, size, max_bytes) as write:
        for chunk in _chunks(source, offset):
            write(chunk)
    return offset


def _locate(url: str) -> tuple[Any, str]:
    """Return the store that a URL names, and the path in it."""
    if "://" not in url or "::" in url:
        # To fsspec the first is a local path; the second is a chain that could bypass the limits of http.py
        raise MirrorError("is not a URL")
    if url.startswith("file://"):
        return fsspec.filesystem("file"), str(Path(url2pathname(urlsplit(url).path)))  # fsspec keeps the %20
    if url.startswith(storage.S3):  # by the library that writes shards there; fsspec would need another one
        return ArrowFSWrapper(storage.system("s3")), url.removeprefix(storage.S3)
    store, path = fsspec.core.url_to_fs(url)
    store.invalidate_cache()  # of listings, or a second try would not look again
    return store, path


def _chunks(source: Any, offset: int) -> Iterator[bytes]:
    with _store_errors():
        source.seek(offset)
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def _store_errors() -> Iterator[None]:
    """Convert the errors of a store's package, each of which has its own, to MirrorError and RetryError."""
    try:
        yield
    except FileNotFoundError:
        raise MirrorError("no such file") from None
    except ImportError as error:  # fsspec names the package
        raise MirrorError(f"needs a package that is not installed: {error}") from None
    except (ConnectionError, TimeoutError) as error:
        raise RetryError(f"connection lost: {_one_line(error)}") from None
    except Exception as error:
        raise MirrorError(f"cannot be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
