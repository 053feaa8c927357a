"""Fetches a file whole and verified, or says why not; what came so far is kept for the next run."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.download import http, remote
from pipeline.download.checksum import Checksum, Record, digests
from pipeline.download.limits import MAX_BYTES, PATIENCE, Limits, MirrorError, Patience, RetryError
from pipeline.download.part import Part, only_one, place
from pipeline.download.urls import shown
from pipeline.errors import DownloadError

PROGRESS_BYTES = (
    2**20
)  # tries that bring less count in a row; so a line that drops every 100 MB still brings 2 GB
BACKOFF_MAX_S = 30.0


def fetch_published(
    folder: Path,
    *,
    urls: Sequence[str],
    checksum: str,
    max_size_gb: float = MAX_BYTES / 1e9,
    allowed_hosts: Collection[str] = (),
) -> Path:
    """Brings a file to `folder` under the name its first URL ends in, as a profile describes it; see `fetch`."""
    name = Path(urlsplit(urls[0]).path).name  # a query, which may hold a secret, is no part of a name
    max_bytes = int(max_size_gb * 1e9)
    return fetch(
        urls,
        folder / name,
        checksum=checksum,
        part_dir=folder,
        max_bytes=max_bytes,
        allowed_hosts=allowed_hosts,
    )


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

    urls: http, https, file, or what fsspec opens (s3, gs ...), tried in order.
    checksum: 'md5:<32 hex>' or 'sha256:<8 to 64 hex>'. The sha256 of the first copy that fits it is recorded beside
    dest, and later copies are held against that too.
    part_dir: keeps unfinished files between runs, so it must lie outside DVC outs, which DVC empties.
    max_bytes: nothing larger is taken; give the exact size where it is known.
    allowed_hosts: 'host' or 'host:port' a redirect may also lead to; from https to http it never may.
    DownloadError names each mirror with its cause, or the disk's fault. Not for use inside an event loop.
    """
    assert not isinstance(urls, str), "urls is a list of them"
    assert not isinstance(allowed_hosts, str), "allowed_hosts is a list of them"
    expected, limits = Checksum.parse(checksum), Limits(max_bytes, allowed_hosts, patience)
    parts = {url: Part.of(part_dir, dest.name, shown(url), expected) for url in urls}
    try:
        if _is_there(dest, expected):
            return dest
        for folder in (part_dir, dest.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with only_one(part_dir / f"{dest.name}.{expected.digits[:8]}.lock"):
            if not _is_there(dest, expected):  # unless another process brought it while this one waited
                _bring(parts, dest, expected, limits)
            for part in parts.values():
                part.drop()
    except OSError as error:
        remedy = f"what came so far is kept in {part_dir}; mend this and run again to go on"
        raise DownloadError(f"{dest}: cannot be written ({error}); {remedy}") from None
    return dest


def _is_there(dest: Path, expected: Checksum) -> bool:
    """Whether the file is there and is the published one, and the same as when it was first verified."""
    if dest.is_dir():
        raise DownloadError(f"{dest} is a folder; {dest.name} should become a file there")
    if not dest.is_file():
        return False
    found, record = digests(dest), Record.read(dest, expected)
    if not expected.fits(found):
        return False
    if record is None:
        Record(str(expected), found["sha256"], dest.stat().st_size, source=None).write(dest)
    elif complaint := record.complaint(found):
        raise DownloadError(
            f"{dest} {complaint}; one of the two is forged: remove {dest} to fetch it again, or, if you trust it, "
            f"{Record.path(dest)}"
        )
    return True


def _bring(parts: Mapping[str, Part], dest: Path, expected: Checksum, limits: Limits) -> None:
    """Puts the file of the first mirror that gives it to its place, with a record of what it is and where from."""
    causes, record = [], Record.read(dest, expected)
    for url, part in parts.items():
        try:
            found = _from_mirror(url, part, expected, record, limits)
        except MirrorError as error:
            causes.append(f"\n  {shown(url)}: {error}")
            continue
        if record is None:
            Record(str(expected), found["sha256"], part.size(), source=shown(url)).write(dest)
        place(part.path, dest)
        return
    present = f" (the file there now has {digests(dest)[expected.algorithm]})" if dest.is_file() else ""
    raise DownloadError(
        f"{dest}: no mirror gave it{present}{''.join(causes) or ', none is listed'}\n"
        f"run again to go on from what is kept, add a mirror, or place the file there by hand"
    )


def _from_mirror(
    url: str, part: Part, expected: Checksum, record: Record | None, limits: Limits
) -> dict[str, str]:
    """Brings the whole verified part and returns its digests; gives up after some tries that bring nothing new."""
    num_failed, furthest, patience = 0, part.size(), limits.patience
    while True:
        try:
            return _try(url, part, expected, record, limits)
        except RetryError as error:
            cause, wait_s = str(error), error.wait_s
        num_failed += 1
        # Measured from the furthest point ever: a server that always starts again from 0 makes no progress.
        if part.size() >= furthest + PROGRESS_BYTES:
            num_failed, furthest = 1, part.size()
        if num_failed >= patience.tries:
            raise MirrorError(f"{cause}; gave up after {num_failed} tries")
        backoff_s = min(patience.backoff_s * 2 ** (num_failed - 1), BACKOFF_MAX_S)
        time.sleep(backoff_s if wait_s is None else wait_s)


def _try(url: str, part: Part, expected: Checksum, record: Record | None, limits: Limits) -> dict[str, str]:
    """Completes the part and returns its digests, which are the expected and the recorded ones."""
    kept_bytes = part.size()
    is_whole = kept_bytes > 0 and part.note()[1] == kept_bytes  # the last run ended before it could verify
    if not is_whole:
        is_web = url.partition("://")[0].lower() in ("http", "https")
        kept_bytes = http.receive(url, part, limits) if is_web else remote.copy(url, part, limits.max_bytes)
    found = digests(part.path)
    if expected.fits(found):
        if complaint := record and record.complaint(found):
            part.drop()
            raise MirrorError(f"{complaint} ({Record.path(Path(part.name))})")
        return found
    with part.path.open("rb") as file:
        is_page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    size = part.size()
    part.drop()
    page = ", an HTML page" if is_page else ""
    cause = f"expected {expected}, found {found[expected.algorithm]} ({size} bytes{page})"
    if kept_bytes:  # the fault may lie in the bytes of an earlier run
        raise RetryError(cause, wait_s=0)
    raise MirrorError(cause)
