"""Append one answer of an HTTP server to a part: resumed if the server can, within time and size limits."""

import asyncio
import email.utils
import logging
import re
import time
from collections.abc import Collection

import httpx

from pipeline.download.mirror import Limits, MirrorError, RetryError, shown
from pipeline.download.part import Part

MAX_REDIRECTS = 10
BUSY_STATUS = (408, 429, 500, 502, 503, 504)  # may pass; every other error status will not

# Both log whole URLs, tokens included.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


def receive(url: str, part: Part, limits: Limits) -> int:
    """Send one request and add its body to the part; return how many bytes of earlier tries were kept.

    Raises MirrorError or RetryError if this server does not give the file, or not now.
    """
    try:
        return asyncio.run(_receive(url, part, limits))
    except httpx.TransportError as error:
        raise RetryError(f"connection lost: {str(error)[:200] or type(error).__name__}") from None


async def _receive(url: str, part: Part, limits: Limits) -> int:
    """Asynchronous only for `asyncio.timeout`, which also ends a server that sends its headers one byte a second."""
    validator, _ = part.note()
    offset = part.size() if validator else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "fcn-pipeline"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:  # it reads the environment's proxies; their addresses may hold passwords, which are not shown
        client = httpx.AsyncClient(timeout=limits.stall_s, headers=headers)
    except (ValueError, ImportError, httpx.InvalidURL):
        raise MirrorError(
            "the proxy that ALL_PROXY, HTTPS_PROXY or NO_PROXY names cannot be used; give it as http://HOST:PORT, or "
            "install the package socksio for socks5://HOST:PORT"
        ) from None
    async with client:
        try:
            async with asyncio.timeout(limits.window_s):
                response = await _open(client, url, limits.allowed_hosts)
            offset, total = _body_range(response, part, offset, limits)
            part.check_room(total, limits.max_bytes)
            if not offset:
                part.begin(_validator(response), total)
            await _append(response, part, offset, total, limits)
        except httpx.TimeoutException:
            raise MirrorError(f"stalled: nothing came for {limits.stall_s:g} s") from None
        except TimeoutError:
            rate = limits.window_bytes / limits.window_s
            raise MirrorError(f"too slow: under {rate:.0f} bytes/s for {limits.window_s:g} s") from None
    return offset


async def _open(client: httpx.AsyncClient, url: str, allowed_hosts: Collection[str]) -> httpx.Response:
    """Return the answer of the server, after redirects that are allowed."""
    try:
        request = client.build_request("GET", url)
    except (httpx.InvalidURL, UnicodeError):
        raise MirrorError("is not a valid URL") from None
    home = request.url
    for _ in range(MAX_REDIRECTS + 1):
        response = await client.send(request, stream=True)
        if response.next_request is None:
            return response
        await response.aclose()
        target = response.next_request.url
        if target.scheme != "https" and (target.scheme != "http" or request.url.scheme == "https"):
            raise MirrorError(f"redirects to {shown(str(target))}, which is not https; refused")
        if target.netloc != home.netloc and not {target.host, target.netloc.decode()} & set(allowed_hosts):
            raise MirrorError(f"redirects to {shown(str(target))}, a host not in allowed_hosts; refused")
        request = response.next_request
    raise MirrorError(f"redirects more than {MAX_REDIRECTS} times")


def _body_range(response: httpx.Response, part: Part, offset: int, limits: Limits) -> tuple[int, int | None]:
    """Return the body's first byte in the part, and the size of the whole file (None: unknown).

    offset: the first byte that was requested.
    """
    status = response.status_code
    if status == 200:
        length = re.fullmatch(r"[0-9]{1,18}", response.headers.get("Content-Length", ""))
        return 0, int(length[0]) if length else None
    if status in BUSY_STATUS:
        raise RetryError(f"answered {status}", _retry_after_s(response, limits.retry_after_max_s))
    if status not in (206, 416):
        raise MirrorError(f"answered {status}")
    content_range = response.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", content_range)
    validator, noted_total = part.note()
    if status == 206 and span and int(span[1]) == offset and _validator(response) in ("", validator):
        total = None if span[2] == "*" else int(span[2])
        if noted_total in (None, total):
            return offset, total
    part.drop()
    raise RetryError(f"answered {status}, not with the same file from byte {offset} on", wait_s=0)


def _validator(response: httpx.Response) -> str:
    """Return the version of the file for If-Range, where a weak ETag is not allowed; '' if there is none."""
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


async def _append(
    response: httpx.Response, part: Part, offset: int, total: int | None, limits: Limits
) -> None:
    """Write the body as it arrives; each window must bring its bytes."""
    clock, window_bytes = asyncio.get_running_loop(), 0
    with part.writing(offset, total, limits.max_bytes) as write:
        async with asyncio.timeout(limits.window_s) as deadline:
            async for chunk in response.aiter_raw():
                write(chunk)
                window_bytes += len(chunk)
                if window_bytes >= limits.window_bytes:
                    window_bytes = 0
                    deadline.reschedule(clock.time() + limits.window_s)
