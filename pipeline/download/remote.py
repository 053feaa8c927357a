"""Files behind every other kind of URL, as fsspec reads them: s3://, gs://, az://, hdfs://, file:// and more.

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

from pipeline.download.limits import MirrorError, RetryError
from pipeline.download.part import Part

CHUNK_BYTES = 2**20


def copy(url: str, part: Part, max_bytes: int) -> int:
    """Adds what is missing of the file to the part; returns how many bytes of earlier tries were kept.

    Goes on with a part only if the file is the same as then, by what its store says of it: size, time, ETag.
    """
    with _named():
        system, path = _found(url)
        info = system.info(path)
        version, size = system.ukey(path), info["size"]
    if info["type"] != "file":  # opening a pipe would wait for ever
        raise MirrorError(f"is no file but a {info['type']}")
    offset = part.size() if part.note() == (version, size) else 0
    part.check_room(size, max_bytes)
    if not offset:
        part.begin(version, size)
    with _named():
        source = system.open(path, "rb")
    with source, part.path.open("r+b") as file, part.bar(size, offset) as bar:
        file.seek(offset)
        for chunk in _chunks(source, offset):
            file.write(chunk)
            file.flush()  # to the system, which keeps it if this process is killed
            bar.update(len(chunk))
            if part.size() > max_bytes:
                part.drop()
                raise MirrorError(f"holds more than the {max_bytes} bytes expected at most")
    if size is not None and part.size() < size:
        raise RetryError(f"ended after {part.size()} of {size} bytes")
    return offset


def _found(url: str) -> tuple[Any, str]:
    """The store a URL names, and the path in it."""
    if (
        "://" not in url or "::" in url
    ):  # fsspec takes the one for a path, the other for a way round our own http
        raise MirrorError("is not a URL")
    if url.startswith("file://"):
        return fsspec.filesystem("file"), str(Path(url2pathname(urlsplit(url).path)))  # fsspec keeps the %20
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # of listings; a try after the first should look again
    return system, path


def _chunks(source: Any, offset: int) -> Iterator[bytes]:
    with _named():
        source.seek(offset)
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def _named() -> Iterator[None]:
    """Turns what a store's package raises into this mirror's fault; each has exceptions of its own."""
    try:
        yield
    except FileNotFoundError:
        raise MirrorError("no such file") from None
    except ImportError as error:  # fsspec names the package
        raise MirrorError(f"needs a package that is not installed: {error}") from None
    except (ConnectionError, TimeoutError) as error:
        raise RetryError(f"connection lost: {_line(error)}") from None
    except Exception as error:
        raise MirrorError(f"cannot be read: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
