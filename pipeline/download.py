"""Fetches a file whole and verified, or says why not; what came so far is kept for the next run."""

import asyncio
import contextlib
import email.utils
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
from tqdm import tqdm

from pipeline.errors import DownloadError
from pipeline.progress import interval_s

STALL_S = 20.0  # silence; longer than any pause of a busy server, and an error within 30 s
WINDOW_S = 25.0  # one for the answer and one for the body make an error within 60 s
WINDOW_BYTES = 25 * 1024  # at least these in each window; 1 KiB/s would take VOC2012 three weeks
TRIES = 5  # in a row without PROGRESS_BYTES, per mirror
PROGRESS_BYTES = 2**20  # so a line that drops every 100 MB still brings 2 GB
BACKOFF_S, BACKOFF_MAX_S = 1.0, 30.0  # doubled after each try
RETRY_AFTER_MAX_S = 60.0  # a server may ask for an hour; the next mirror is better
MAX_BYTES = 8 * 2**30  # four times VOC2012, the largest file known here
MAX_REDIRECTS = 10
SPARE_BYTES = 64 * 2**20  # left free on the disk for logs and notes
CHUNK_BYTES = 2**20
PREFIX_DIGITS = 8  # what torchvision's weights publish of their sha256
DIGEST_DIGITS = {"md5": 32, "sha256": 64}
BUSY_STATUS = (408, 429, 500, 502, 503, 504)  # may pass; every other error status will not

# Both log whole URLs, tokens included.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to ask again; tests shorten it."""

    stall_s: float = STALL_S
    window_s: float = WINDOW_S
    window_bytes: int = WINDOW_BYTES
    tries: int = TRIES
    backoff_s: float = BACKOFF_S
    retry_after_max_s: float = RETRY_AFTER_MAX_S


PATIENCE = Patience()


class _MirrorError(Exception):
    """This mirror does not give the file; another may."""


class _RetryError(Exception):
    """This try failed; the same mirror may give the file after `wait_s` (None: the usual back-off)."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        super().__init__(cause)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _Checksum:
    algorithm: str
    digits: str  # of a sha256, possibly only the first ones

    def __str__(self) -> str:
        return f"{self.algorithm} {self.digits}"

    @classmethod
    def parse(cls, text: str) -> "_Checksum":
        algorithm, _, digits = text.lower().partition(":")
        full = DIGEST_DIGITS.get(algorithm, 0)
        least = PREFIX_DIGITS if algorithm == "sha256" else full
        if not full or not least <= len(digits) <= full or not re.fullmatch("[0-9a-f]+", digits):
            forms = f"'md5:' and 32 hex digits, or 'sha256:' and 64 or at least the first {PREFIX_DIGITS}"
            raise DownloadError(f"checksum {text!r} must be {forms}")
        return cls(algorithm, digits)

    def found(self, path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest()

    def fits(self, path: Path) -> bool:
        return path.is_file() and self.found(path).startswith(self.digits)


@dataclass(frozen=True)
class _Part:
    """What has come so far from one URL, and a note beside it that says of which version of the file."""

    path: Path
    source: str  # URL without its secrets, and the checksum

    @classmethod
    def of(cls, part_dir: Path, name: str, url: str, checksum: _Checksum) -> "_Part":
        source = f"{shown(url)} {checksum}"
        return cls(part_dir / f"{name}.{hashlib.sha256(source.encode()).hexdigest()[:8]}.part", source)

    @property
    def note_path(self) -> Path:
        return self.path.with_suffix(".json")

    def size(self) -> int:
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
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Rules:
    """What is the same for all mirrors of one file."""

    name: str
    checksum: _Checksum
    max_bytes: int
    allowed_hosts: Collection[str]
    patience: Patience


def fetch_published(folder: Path, *, urls: Sequence[str], checksum: str, max_size_gb: float) -> Path:
    """Brings a file to `folder` under the name its first URL ends in, as a profile describes it; see `fetch`."""
    dest = (
        folder / Path(urlsplit(urls[0]).path).name
    )  # a query, which may hold a secret, is no part of a name
    return fetch(urls, dest, checksum=checksum, part_dir=folder, max_bytes=int(max_size_gb * 1e9))


def fetch(
    urls: Sequence[str],
    dest: Path,
    *,
    checksum: str,
    part_dir: Path,
    max_bytes: int = MAX_BYTES,
    allowed_hosts: Collection[str] = (),
    patience: Patience = PATIENCE,
) -> Path:
    """Brings one file to `dest` from the first mirror that has it, verified before it appears there.

    urls: http, https or file, tried in order.   checksum: 'md5:<32 hex>' or 'sha256:<8 to 64 hex>'.
    part_dir: keeps unfinished files between runs, so it must lie outside DVC outs, which DVC empties.
    max_bytes: nothing larger is taken; give the exact size where it is known.
    allowed_hosts: 'host' or 'host:port' a redirect may also lead to; from https to http it never may.
    DownloadError names each mirror with its cause, or the disk's fault. Not for use inside an event loop.
    """
    assert not isinstance(urls, str), "urls is a list of them"
    assert not isinstance(allowed_hosts, str), "allowed_hosts is a list of them"
    rules = _Rules(dest.name, _Checksum.parse(checksum), max_bytes, allowed_hosts, patience)
    parts = {url: _Part.of(part_dir, dest.name, url, rules.checksum) for url in urls}
    try:
        if rules.checksum.fits(dest):
            return dest
        if dest.is_dir():
            raise DownloadError(f"{dest} is a folder; {dest.name} should become a file there")
        for folder in (part_dir, dest.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with _only_one(part_dir / f"{dest.name}.{rules.checksum.digits[:8]}.lock"):
            if not rules.checksum.fits(dest):  # unless another process brought it while this one waited
                _place(_from_mirrors(parts, dest, rules), dest, rules.checksum)
            for part in parts.values():
                part.drop()
    except OSError as error:
        remedy = f"what came so far is kept in {part_dir}; mend this and run again to go on"
        raise DownloadError(f"{dest}: cannot be written ({error}); {remedy}") from None
    return dest


def shown(url: str) -> str:
    """A URL as messages may show it: without user, password, query and fragment, which may hold secrets."""
    # A password may hold '/', '?' or '#' unquoted: after 'user:' all goes up to the last '@'.
    credentials = r"(?:[^/?#@]*:.*@|[^/?#]*@)?"
    return re.sub(rf"^([\w+.-]+://)?{credentials}([^?#]*).*$", r"\1\2", url, flags=re.DOTALL)


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Waits until no other process fetches the same file. The system frees the lock of a killed process."""
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process fetches the same file, waiting for it ({lock})", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _place(part: Path, dest: Path, checksum: _Checksum) -> None:
    """Moves a verified part to its final name in one step, so that no other content is ever seen there."""
    with part.open("rb") as file:
        os.fsync(file.fileno())  # else a power cut can leave the name without the bytes
    try:
        part.replace(dest)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        arriving = dest.with_name(f".{dest.name}.arriving")  # part_dir is on another disk
        try:
            shutil.copyfile(part, arriving)
            assert checksum.fits(arriving), f"the copy of {part} differs from it"
            _place(arriving, dest, checksum)
        finally:
            arriving.unlink(missing_ok=True)


def _from_mirrors(parts: Mapping[str, _Part], dest: Path, rules: _Rules) -> Path:
    """The verified part of the first mirror that gives the file."""
    causes = []
    for url, part in parts.items():
        try:
            _from_mirror(url, part, rules)
            return part.path
        except _MirrorError as error:
            causes.append(f"\n  {shown(url)}: {error}")
    present = f" (the file there now has {rules.checksum.found(dest)})" if dest.is_file() else ""
    raise DownloadError(
        f"{dest}: no mirror gave it{present}{''.join(causes) or ', none is listed'}\n"
        f"run again to go on from what is kept, add a mirror, or place the file there by hand"
    )


def _from_mirror(url: str, part: _Part, rules: _Rules) -> None:
    """Brings the whole verified part; gives up after some tries in a row that bring nothing new."""
    num_failed, furthest = 0, part.size()
    while True:
        try:
            return _try(url, part, rules)
        except _RetryError as error:
            cause, wait_s = str(error), error.wait_s
        except httpx.TransportError as error:
            cause, wait_s = f"connection lost: {str(error)[:200] or type(error).__name__}", None
        num_failed += 1
        # Measured from the furthest point ever: a server that always starts again from 0 makes no progress.
        if part.size() >= furthest + PROGRESS_BYTES:
            num_failed, furthest = 1, part.size()
        if num_failed >= rules.patience.tries:
            raise _MirrorError(f"{cause}; gave up after {num_failed} tries")
        backoff_s = min(rules.patience.backoff_s * 2 ** (num_failed - 1), BACKOFF_MAX_S)
        time.sleep(backoff_s if wait_s is None else wait_s)


def _try(url: str, part: _Part, rules: _Rules) -> None:
    kept_bytes = part.size()
    is_whole = kept_bytes > 0 and part.note()[1] == kept_bytes  # the last run ended before it could verify
    if not is_whole:
        scheme = url.partition("://")[0].lower()
        if scheme == "file":
            _copy(url, part, rules)
        elif scheme in ("http", "https"):
            kept_bytes = asyncio.run(_receive(url, part, rules))
        else:
            raise _MirrorError("is not an http, https or file URL")
    found = rules.checksum.found(part.path)
    if found.startswith(rules.checksum.digits):
        return
    with part.path.open("rb") as file:
        is_page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    size = part.size()
    part.drop()
    cause = f"expected {rules.checksum}, found {found} ({size} bytes{', an HTML page' if is_page else ''})"
    if kept_bytes:  # the fault may lie in the bytes of an earlier run
        raise _RetryError(cause, wait_s=0)
    raise _MirrorError(cause)


def _copy(url: str, part: _Part, rules: _Rules) -> None:
    try:
        source = Path(url2pathname(urlsplit(url).path))
        if not source.is_file():  # opening a pipe would wait for ever
            raise _MirrorError("no such file")
        file = source.open("rb")
    except (OSError, ValueError) as error:
        raise _MirrorError(f"cannot be read: {error}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        _check_size(size, part, rules)
        part.begin("", size)
        progress = {"total": size, "desc": rules.name, "mininterval": interval_s()}
        with part.path.open("wb") as copy, tqdm.wrapattr(file, "read", **progress) as counted:
            shutil.copyfileobj(counted, copy, CHUNK_BYTES)


async def _receive(url: str, part: _Part, rules: _Rules) -> int:
    """One HTTP request, its body added to the part; returns how many bytes of earlier tries were kept.

    Asynchronous only for `asyncio.timeout`: it also ends a server that sends its headers one byte a second.
    """
    validator, _ = part.note()
    offset = part.size() if validator else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "fcn-pipeline"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    patience = rules.patience
    async with httpx.AsyncClient(timeout=patience.stall_s, headers=headers) as client:
        try:
            async with asyncio.timeout(patience.window_s):
                response = await _open(client, url, rules.allowed_hosts)
            offset, total = _admit(response, part, offset, patience)
            _check_size(total, part, rules)
            if not offset:
                part.begin(_validator(response), total)
            await _append(response, part, offset, total, rules)
        except httpx.TimeoutException:
            raise _MirrorError(f"stalled: nothing came for {patience.stall_s:g} s") from None
        except TimeoutError:
            rate = patience.window_bytes / patience.window_s
            raise _MirrorError(f"too slow: under {rate:.0f} bytes/s for {patience.window_s:g} s") from None
    return offset


async def _open(client: httpx.AsyncClient, url: str, allowed_hosts: Collection[str]) -> httpx.Response:
    try:
        request = client.build_request("GET", url)
    except (httpx.InvalidURL, UnicodeError):
        raise _MirrorError("is not a valid URL") from None
    home = request.url
    for _ in range(MAX_REDIRECTS + 1):
        response = await client.send(request, stream=True)
        if response.next_request is None:
            return response
        await response.aclose()
        target = response.next_request.url
        if target.scheme != "https" and (target.scheme != "http" or request.url.scheme == "https"):
            raise _MirrorError(f"redirects to {shown(str(target))}, which is not https; refused")
        if target.netloc != home.netloc and not {target.host, target.netloc.decode()} & set(allowed_hosts):
            raise _MirrorError(f"redirects to {shown(str(target))}, a host not in allowed_hosts; refused")
        request = response.next_request
    raise _MirrorError(f"redirects more than {MAX_REDIRECTS} times")


def _admit(response: httpx.Response, part: _Part, offset: int, patience: Patience) -> tuple[int, int | None]:
    """Where the body belongs in the part, and how long the whole file is, if announced."""
    status = response.status_code
    if status == 200:
        length = re.fullmatch(r"[0-9]{1,18}", response.headers.get("Content-Length", ""))
        return 0, int(length[0]) if length else None
    if status in BUSY_STATUS:
        raise _RetryError(f"answered {status}", _retry_after_s(response, patience.retry_after_max_s))
    if status not in (206, 416):
        raise _MirrorError(f"answered {status}")
    content_range = response.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", content_range)
    validator, total = part.note()
    if status == 206 and span and int(span[1]) == offset and _validator(response) in ("", validator):
        found_total = None if span[2] == "*" else int(span[2])
        if total in (None, found_total):
            return offset, found_total
    part.drop()
    raise _RetryError(f"answered {status}, not with the same file from byte {offset} on", wait_s=0)


def _validator(response: httpx.Response) -> str:
    """Names this version of the file for If-Range, where a weak ETag is not allowed; '' if nothing does."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _retry_after_s(response: httpx.Response, max_s: float) -> float | None:
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return min(float(text), max_s)
    try:
        wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), max_s)


def _check_size(total: int | None, part: _Part, rules: _Rules) -> None:
    """Refuses a file known to be too large for the caller or for the disk, before any of it is written."""
    if total is None:
        return
    if total > rules.max_bytes:
        raise _MirrorError(f"announces {total} bytes, more than the {rules.max_bytes} expected at most")
    free = shutil.disk_usage(part.path.parent).free
    needed = total - part.size() + SPARE_BYTES  # the part is gone on with, or overwritten
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", str(part.path.parent))


async def _append(
    response: httpx.Response, part: _Part, offset: int, total: int | None, rules: _Rules
) -> None:
    """Writes the body as it comes; each window must bring its bytes, and none may pass the known size."""
    limit = rules.max_bytes if total is None else total
    clock, patience = asyncio.get_running_loop(), rules.patience
    size, window_bytes = offset, 0
    progress = {"total": total, "initial": offset, "desc": rules.name, "mininterval": interval_s()}
    with part.path.open("r+b") as file, tqdm(**progress, unit="B", unit_scale=True) as bar:
        file.seek(offset)
        async with asyncio.timeout(patience.window_s) as deadline:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > limit:
                    part.drop()
                    raise _MirrorError(f"sends more than the {limit} bytes announced or expected")
                file.write(chunk)
                file.flush()  # to the system, which keeps it if this process is killed
                bar.update(len(chunk))
                window_bytes += len(chunk)
                if window_bytes >= patience.window_bytes:
                    window_bytes = 0
                    deadline.reschedule(clock.time() + patience.window_s)
    if total is not None and size < total:
        raise _RetryError(f"ended after {size} of {total} bytes")
