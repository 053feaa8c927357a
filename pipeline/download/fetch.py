"""Fetch a file whole and verified, from the first mirror that has it; partial files are kept for the next run."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.download import http, remote
from pipeline.download.checksum import Checksum, Record, digests
from pipeline.download.mirror import Limits, MirrorError, RetryError, shown
from pipeline.download.part import Part
from pipeline.errors import DownloadError
from pipeline.files import lock

PROGRESS_BYTES = 2**20  # a try that adds at least this much resets the failure count
BACKOFF_MAX_S = 30.0
PAGE_STARTS = (b"<!doctype html", b"<html")


def fetch_published(
    folder: Path,
    *,
    urls: Sequence[str],
    checksum: str,
    max_size_gb: float = Limits.max_bytes / 1e9,
    allowed_hosts: Collection[str] = (),
) -> Path:
    """Fetch a file, described as in a profile, to `folder` under the name its first URL ends in; see `fetch`."""
    name = Path(urlsplit(urls[0]).path).name  # without a query, which may hold a secret
    limits = Limits(max_bytes=int(max_size_gb * 1e9), allowed_hosts=allowed_hosts)
    return fetch(urls, folder / name, checksum=checksum, limits=limits)


def fetch(urls: Sequence[str], dest: Path, *, checksum: str, limits: Limits | None = None) -> Path:
    """Fetch one file to `dest` from the first mirror that has it, verified before it appears there.

    Partial files lie beside `dest`. That must be outside DVC's outs, which DVC empties before a stage runs.
    The sha256 of the first copy that fits the checksum is recorded beside `dest`; later copies must have it too.
    Not for use inside an event loop.

    urls: http, https, file, or another that fsspec opens (s3, gs ...), tried in order.
    dest: the final name. A file there that does not fit the checksum is replaced.
    checksum: 'md5:<32 hex>' or 'sha256:<8 to 64 hex>'.
    limits: give the exact size where it is known.

    Raises DownloadError, which names each mirror with its cause, or the fault of the disk.
    """
    expected, limits = Checksum.parse(checksum), limits or Limits()
    parts = {url: Part.of(dest, shown(url), expected) for url in urls}
    try:
        if _is_verified(dest, expected):
            return dest
        with lock(dest.with_name(f".{dest.name}.lock"), f"fetches {dest} already"):
            if not _is_verified(dest, expected):  # unless the process that held the lock fetched it
                _fetch_from_mirrors(parts, dest, expected, limits)
            for part in parts.values():
                part.drop()
    except OSError as error:
        remedy = f"the bytes that arrived are kept in {dest.parent}; mend this and run again to resume"
        raise DownloadError(f"{dest}: cannot be written ({error}); {remedy}") from None
    return dest


def _is_verified(dest: Path, expected: Checksum) -> bool:
    """Return whether the file is the published one, and the same as when it was first verified."""
    if dest.is_dir():
        raise DownloadError(f"{dest} is a folder; expected a file or nothing there")
    if not dest.is_file():
        return False
    actual, record = digests(dest), Record.read(dest, expected)
    if not expected.fits(actual):
        return False
    if record is None:
        Record(str(expected), actual["sha256"], dest.stat().st_size, source=None).write(dest)
    elif difference := record.difference(actual):
        raise DownloadError(
            f"{dest} {difference}. One of the two is forged: remove {dest} to fetch it again, or, if you trust it, "
            f"{Record.path(dest)}"
        )
    return True


def _fetch_from_mirrors(parts: Mapping[str, Part], dest: Path, expected: Checksum, limits: Limits) -> None:
    """Move the file of the first mirror that gives it to `dest`, and record its sha256 and source."""
    causes, record = [], Record.read(dest, expected)
    for url, part in parts.items():
        try:
            actual = _complete(url, part, expected, record, limits)
        except MirrorError as error:
            causes.append(f"\n  {shown(url)}: {error}")
            continue
        if record is None:
            Record(str(expected), actual["sha256"], part.size(), source=shown(url)).write(dest)
        part.move_to(dest)
        return
    present = f" (the file there now has {digests(dest)[expected.algorithm]})" if dest.is_file() else ""
    raise DownloadError(
        f"{dest}: no mirror gave it{present}{''.join(causes) or ', none is listed'}\n"
        f"run again to resume from the kept bytes, add a mirror, or place the file there by hand"
    )


def _complete(
    url: str, part: Part, expected: Checksum, record: Record | None, limits: Limits
) -> dict[str, str]:
    """Complete the part and return its verified digests; give up after some tries without progress."""
    num_failed, furthest = 0, part.size()
    while True:
        try:
            return _try(url, part, expected, record, limits)
        except RetryError as error:
            cause, wait_s = str(error), error.wait_s
        num_failed += 1
        # Measured from the furthest point so far: a server that always starts again from 0 makes no progress.
        if part.size() >= furthest + PROGRESS_BYTES:
            num_failed, furthest = 1, part.size()
        if num_failed >= limits.tries:
            raise MirrorError(f"{cause}; gave up after {num_failed} tries")
        backoff_s = min(limits.backoff_s * 2 ** (num_failed - 1), BACKOFF_MAX_S)
        time.sleep(backoff_s if wait_s is None else wait_s)


def _try(url: str, part: Part, expected: Checksum, record: Record | None, limits: Limits) -> dict[str, str]:
    """Send one request, unless the part is complete already, and return the part's verified digests."""
    kept_bytes = part.size()
    is_whole = kept_bytes > 0 and part.note()[1] == kept_bytes  # the last run ended before it could verify
    if not is_whole:
        is_web = url.partition("://")[0].lower() in ("http", "https")
        kept_bytes = http.receive(url, part, limits) if is_web else remote.copy(url, part, limits.max_bytes)
    actual = digests(part.path)
    if expected.fits(actual):
        if difference := record and record.difference(actual):
            part.drop()
            raise MirrorError(f"{difference} ({Record.path(Path(part.name))})")
        return actual
    with part.path.open("rb") as file:
        is_page = file.read(512).lstrip().lower().startswith(PAGE_STARTS)
    page = ", an HTML page" if is_page else ""
    cause = f"expected {expected}, found {actual[expected.algorithm]} ({part.size()} bytes{page})"
    part.drop()
    if kept_bytes:  # the fault may lie in the bytes of an earlier run
        raise RetryError(cause, wait_s=0)
    raise MirrorError(cause)
