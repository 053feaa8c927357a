"""pipeline/download/fetch.py, http.py and part.py, with a real HTTP server on loopback that misbehaves on request."""

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import certifi
import pytest

from pipeline.download import fetch as download
from pipeline.download import part as part_module
from pipeline.download.checksum import Record
from pipeline.download.fetch import fetch
from pipeline.download.mirror import Limits
from pipeline.download.part import Part
from pipeline.errors import DownloadError
from tests.conftest import ROOT
from tests.faulty_server import (
    HOST,
    Behaviour,
    FaultyServer,
    at_another_offset,
    drop_after,
    endless,
    ignore_range,
    other_body,
    redirect,
    serve,
    silent,
    slow,
    stall_after,
    status,
    trickling_headers,
    wait_until,
    without_length,
)

BODY = bytes(range(256)) * 1200  # 300 KiB
HALF = len(BODY) // 2
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
QUICK = Limits(stall_s=1.0, window_s=2.0, window_bytes=4096, tries=3, backoff_s=0.01, retry_after_max_s=0.3)
UNHURRIED = replace(QUICK, stall_s=20.0, window_s=20.0)  # where a busy machine must not count as a stall


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(BODY) as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[FaultyServer]:
    with FaultyServer(BODY) as server:
        yield server


class Fetch:
    """`fetch` into a fresh folder, with short waiting times."""

    def __init__(self, folder: Path):
        self.dest = folder / "downloads" / "file.tar"

    def __call__(
        self, *urls: str, checksum: str = SHA256, limits: Limits = QUICK, **changes: object
    ) -> bytes:
        path = fetch(urls, self.dest, checksum=checksum, limits=replace(limits, **changes))
        assert path == self.dest
        return path.read_bytes()

    def refused(self, *urls: str, **options: object) -> str:
        """Return the message of the error, after which nothing is at the final name."""
        with pytest.raises(DownloadError) as refusal:
            self(*urls, **options)
        assert not self.dest.exists()
        return str(refusal.value)

    def half(self, server: FaultyServer, query: str = "", **headers: object) -> Path:
        """Return the part that a failed run left, of half of the body. The server then works again."""
        server.script = [drop_after(HALF, **headers), status(404)]
        self.refused(server.url + query)
        server.script = [serve()]
        server.requests.clear()
        (part,) = self.parts()
        assert part.stat().st_size == HALF
        return part

    def parts(self) -> list[Path]:
        return sorted(self.dest.parent.glob("*.part"))


@pytest.fixture
def get(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path)


# What is fetched


@pytest.mark.parametrize("checksum", [SHA256, SHA256.upper().replace("SHA", "sha"), SHA256[:15], MD5])
def test_a_file_is_fetched_and_only_its_record_and_lock_are_left(server, get, checksum: str):
    assert get(server.url, checksum=checksum) == BODY
    lock = get.dest.with_name(".file.tar.lock")
    assert sorted(get.dest.parent.iterdir()) == [lock, get.dest, Record.path(get.dest)]


def test_an_empty_file_is_fetched(get):
    with FaultyServer(b"") as server:
        assert get(server.url, checksum=f"md5:{hashlib.md5().hexdigest()}") == b""


def test_a_file_already_there_is_not_asked_for_again(server, get):
    get(server.url)
    server.requests.clear()
    assert get(server.url) == BODY
    assert server.requests == []


def test_a_file_there_with_another_hash_is_replaced_or_named_if_no_mirror_helps(server, get):
    get.dest.parent.mkdir()
    get.dest.write_bytes(b"old")
    server.script = [status(404), serve()]
    with pytest.raises(DownloadError, match=hashlib.sha256(b"old").hexdigest()):
        get(server.url)
    assert get(server.url) == BODY


@pytest.mark.parametrize(
    "checksum",
    [
        *("", "sha256:", "md5:", SHA256[7:], "sha256:1234567", "sha256:" + "0" * 65, "md5:" + "0" * 31),
        *("sha1:" + "0" * 40, "sha256:" + "g" * 64, "sha256:0000 0000", "md5:" + "0" * 31 + "\n"),
    ],
)
def test_a_missing_or_malformed_checksum_is_refused(server, get, checksum: str):
    assert "checksum" in get.refused(server.url, checksum=checksum)
    assert server.requests == []


def test_no_mirror_at_all_is_refused(get):
    assert "none is listed" in get.refused()


def test_a_file_url_is_copied_and_verified(tmp_path, get):
    source = tmp_path / "a name with spaces"
    source.write_bytes(BODY)
    assert get(source.as_uri()) == BODY
    assert source.read_bytes() == BODY


def test_a_file_url_to_nothing_a_folder_a_pipe_or_a_wrong_file_gives_way_to_the_next(tmp_path, server, get):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "wrong").write_bytes(b"wrong")
    names = ("absent", "", "pipe", "wrong")
    assert get(*((tmp_path / name).as_uri() for name in names), server.url) == BODY


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/file",
        "no url",
        "http://",
        "http://[bad/",
        "http://host:port/",
        "",
        f"http://{HOST}:1/file",
    ],
)
def test_a_url_that_is_not_usable_or_not_answered_gives_way_to_the_next(server, get, url):
    assert get(url, server.url) == BODY


@pytest.mark.parametrize("proxy", ["socks://me:secret@proxy:9", "socks5://me:secret@proxy:9"])
def test_a_proxy_that_is_not_usable_is_named_without_its_password_and_gives_way_to_the_next(
    tmp_path, server, get, monkeypatch, proxy
):
    monkeypatch.setenv("ALL_PROXY", proxy)
    message = get.refused(server.url)
    assert "ALL_PROXY" in message
    assert "secret" not in message
    (tmp_path / "copy").write_bytes(BODY)
    assert get(server.url, (tmp_path / "copy").as_uri()) == BODY


# Dropped connections and killed clients


def test_a_dropped_connection_is_resumed_with_range_and_if_range(server, get):
    server.script = [drop_after(HALF), serve()]
    assert get(server.url) == BODY
    assert server.requests[1].start == HALF
    assert server.requests[1].headers["If-Range"] == server.etag


def test_a_line_that_drops_often_but_brings_something_each_time_is_endured(get):
    body = os.urandom(8 * 2**20)
    with FaultyServer(body) as server:
        server.script = [drop_after(2**20 + 1)]
        assert get(server.url, checksum=f"md5:{hashlib.md5(body).hexdigest()}") == body
        assert len(server.requests) > QUICK.tries


def test_a_server_that_drops_and_can_not_resume_is_given_up(get):
    with FaultyServer(os.urandom(4 * 2**20)) as server:
        server.script = [drop_after(3 * 2**20, ETag=None)]
        assert "gave up" in get.refused(server.url)
        assert len(server.requests) == QUICK.tries


def test_last_modified_serves_where_the_etag_is_weak(server, get):
    date = formatdate(0, usegmt=True)
    server.script = [drop_after(HALF, ETag='W/"1"', Last_Modified=date), serve()]
    assert get(server.url) == BODY
    assert server.requests[1].headers["If-Range"] == date


CLIENT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
import sys
from pathlib import Path
from pipeline.download.fetch import fetch
fetch([sys.argv[1]], Path(sys.argv[2]), checksum=sys.argv[3])
"""


def start_client(get: Fetch, url: str, checksum: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLIENT, url, str(get.dest), checksum]
    return subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_client_goes_on_and_at_most_1_mib_is_sent_twice(get, end: signal.Signals):
    body = os.urandom(6 * 2**20)
    checksum = f"sha256:{hashlib.sha256(body).hexdigest()}"
    with FaultyServer(body) as server:
        server.script = [slow(32 * 1024, 0.008), serve()]
        client = start_client(get, server.url, checksum)
        wait_until(lambda: bool(server.requests) and server.requests[0].num_sent > 3 * 2**20)
        client.send_signal(end)
        client.communicate(timeout=10)
        assert client.returncode == -end
        assert not get.dest.exists()
        assert get(server.url, checksum=checksum) == body
        first, second = server.requests
        assert second.start > 0
        assert first.num_sent + second.num_sent <= len(body) + 2**20


def test_a_client_killed_between_the_last_byte_and_the_move_asks_for_nothing_again(server, get, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Part, "move_to", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(server.url)
    server.requests.clear()
    assert get(server.url) == BODY
    assert server.requests == []


def test_two_processes_at_once_fetch_once(get):
    with FaultyServer(BODY) as server:
        server.script = [slow(len(BODY) // 4, 0.1)]
        clients = [start_client(get, server.url, SHA256) for _ in range(2)]
        for client in clients:
            client.communicate(timeout=20)
        assert [client.returncode for client in clients] == [0, 0]
        assert len(server.requests) == 1
    assert get.dest.read_bytes() == BODY


# Servers that can not resume, or a part that does not belong


@pytest.mark.parametrize(
    "second",
    [
        ignore_range(),
        at_another_offset(-1000),
        at_another_offset(+1000),
        serve(ETag='"changed"'),
        serve(Content_Range=f"bytes {HALF}-{len(BODY) - 1}/{len(BODY) + 1}"),
        serve(Content_Range="bytes nonsense"),
        status(416, Content_Range=f"bytes */{len(BODY)}"),
    ],
    ids=["ignores_range", "earlier_offset", "later_offset", "new_etag", "new_length", "malformed", "416"],
)
def test_a_server_that_does_not_go_on_at_the_asked_place_means_start_again(server, get, second: Behaviour):
    server.script = [drop_after(HALF), second, serve()]
    assert get(server.url) == BODY
    assert server.requests[1].start == HALF
    assert server.requests[-1].start == (HALF if len(server.requests) == 2 else 0)


def test_a_file_changed_on_the_server_between_runs_is_fetched_from_0(server, get):
    get.half(server, ETag='"older"')
    assert get(server.url) == BODY
    assert server.requests[0].headers["If-Range"] == '"older"'


def change_note(part: Path):
    note = part.with_suffix(".json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"source": "http://elsewhere/file"}))


SPOILED: dict[str, Callable[[Path], object]] = {
    "other_bytes": lambda part: part.write_bytes(bytes(HALF)),
    "too_long": lambda part: part.write_bytes(BODY + b"too much"),
    "whole_but_other_bytes": lambda part: part.write_bytes(bytes(len(BODY))),
    "no_note": lambda part: part.with_suffix(".json").unlink(),
    "damaged_note": lambda part: part.with_suffix(".json").write_text("[1, "),
    "empty_note": lambda part: part.with_suffix(".json").write_text("[]"),
    "note_of_another_url": change_note,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_stale_part_is_never_made_longer(server, get, spoil: Callable[[Path], object]):
    spoil(get.half(server))
    assert get(server.url) == BODY
    assert server.requests[-1].start == 0


def test_a_server_without_validators_is_asked_from_0(server, get):
    server.script = [drop_after(HALF, ETag=None), serve()]
    assert get(server.url) == BODY
    assert "Range" not in server.requests[1].headers


# Error statuses


@pytest.mark.parametrize("code", [204, 304, 400, 401, 403, 404, 410, 501])
def test_a_lasting_error_status_gives_way_to_the_next_mirror_at_once(server, mirror, get, code: int):
    server.script = [status(code, b"")]
    assert get(server.url, mirror.url) == BODY
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_status_is_tried_again(server, get, code: int):
    server.script = [status(code), status(code), serve()]
    assert get(server.url) == BODY


@pytest.mark.parametrize("code", [429, 500, 503])
def test_tries_are_bounded_and_then_comes_the_next_mirror(server, mirror, get, code: int):
    server.script = [status(code)]
    assert get(server.url, mirror.url, limits=UNHURRIED) == BODY
    assert len(server.requests) == QUICK.tries


@pytest.mark.parametrize(
    ("retry_after", "least_s", "most_s"),
    [
        ("0", 0, 0),
        ("0.2", 0.01, 0.01),  # not a form the standard has: the usual back-off
        ("3600", 0.3, 0.3),
        ("9" * 5000, 0.3, 0.3),
        ("soon", 0.01, 0.01),
        ("-1", 0.01, 0.01),
        (formatdate(time.time() + 3600, usegmt=True), 0.3, 0.3),
        (formatdate(0, usegmt=True), 0, 0),
    ],
    ids=["none", "fraction", "hour", "huge", "nonsense", "negative", "date", "past_date"],
)
def test_retry_after_is_honoured_up_to_a_cap(
    server, get, retry_after: str, least_s: float, most_s: float, monkeypatch
):
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.script = [status(429, Retry_After=retry_after), serve()]
    assert get(server.url) == BODY
    assert len(waits) == 1
    assert least_s <= waits[0] <= most_s


# Wrong content


WRONG = {
    "another_file": other_body(b"x" * len(BODY)),
    "html_page": other_body(b"\n<!DOCTYPE html><p>Please log in", Content_Type="text/html"),
    "truncated_without_length": without_length(BODY[:-1]),
    "truncated_with_the_length_of_the_piece": other_body(BODY[:HALF]),
    "longer": other_body(BODY + b"!"),
    "empty": other_body(b""),
}


@pytest.mark.parametrize("behaviour", WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_with_both_hashes_and_the_next_mirror_asked(
    server, mirror, get, behaviour: Behaviour
):
    server.script = [behaviour]
    message = get.refused(server.url)
    assert f"expected sha256 {SHA256[7:]}, found " in message
    assert len(server.requests) == 1
    assert get(server.url, mirror.url) == BODY


def test_a_body_without_content_length_is_taken_if_the_hash_is_right(server, get):
    server.script = [without_length()]
    assert get(server.url) == BODY


def test_bytes_are_stored_as_sent_even_if_called_gzip(server, get):
    server.script = [serve(Content_Encoding="gzip")]  # some servers say so of every .tgz
    assert get(server.url) == BODY
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


# Too much, too slow


@pytest.mark.parametrize("length", ["1" + 15 * "0", "9" * 5000])
def test_a_content_length_above_the_maximum_is_refused_before_the_body(server, get, length: str):
    server.script = [drop_after(0, Content_Length=length)]
    get.refused(server.url)
    assert sum(part.stat().st_size for part in get.parts()) == 0


def test_a_body_longer_than_the_maximum_is_cut_off_there(server, get):
    server.script = [endless(bytes(65536))]
    assert f"more than the {len(BODY)} bytes" in get.refused(server.url, max_bytes=len(BODY))
    assert server.requests[0].num_sent < 30 * len(BODY)  # what fits the buffers of both systems


def test_a_resumed_body_longer_than_announced_is_cut_off_there(server, get):
    span = f"bytes {HALF}-{len(BODY) - 1}/{len(BODY)}"
    server.script = [drop_after(HALF), endless(bytes(65536), Content_Range=span, ETag=server.etag)]
    assert f"more than the {len(BODY)} bytes" in get.refused(server.url)


@pytest.mark.parametrize("behaviour", [silent(), stall_after(0), stall_after(HALF)])
def test_a_stall_ends_and_keeps_the_part(server, get, behaviour: Behaviour):
    server.script = [behaviour, serve()]
    start = time.monotonic()
    assert "stalled" in get.refused(server.url)
    assert time.monotonic() - start < 5 * QUICK.stall_s
    assert get(server.url) == BODY


@pytest.mark.parametrize(
    "behaviour", [slow(1, 0.05), trickling_headers(0.05)], ids=["in_the_body", "in_the_headers"]
)
def test_a_trickle_ends(server, get, behaviour: Behaviour):
    server.script = [behaviour]
    start = time.monotonic()
    assert "too slow" in get.refused(server.url)
    assert time.monotonic() - start < 2.5 * QUICK.window_s


def test_a_slow_but_steady_body_longer_than_the_window_is_endured(server, get):
    server.script = [slow(len(BODY) // 20, 0.15)]
    start = time.monotonic()
    assert get(server.url) == BODY
    assert time.monotonic() - start > QUICK.window_s


def test_by_default_a_stall_ends_within_30_s_and_a_trickle_within_60_s():
    assert Limits().stall_s <= 25
    assert 2 * Limits().window_s <= 55  # one window for the headers, one for the body


# Redirects


def test_a_redirect_on_the_same_server_is_followed(server, get):
    server.script = [redirect("/elsewhere/file.tar"), serve()]
    assert get(server.url) == BODY
    assert server.requests[1].path == "/elsewhere/file.tar"


@pytest.mark.parametrize("listed", [HOST, "host_and_port"])
def test_a_redirect_to_another_host_needs_it_listed(server, mirror, get, listed: str):
    server.script = [redirect(f"{mirror.url}?token=secret")]
    message = get.refused(server.url, allowed_hosts=["example.org"])
    assert mirror.url in message
    assert "secret" not in message
    assert mirror.requests == []
    if listed == "host_and_port":
        listed = f"{HOST}:{mirror.server_port}"
    assert get(server.url, allowed_hosts=[listed]) == BODY


def test_a_redirect_that_comes_back_by_way_of_a_listed_host_is_followed(server, mirror, get):
    server.script = [redirect(mirror.url), serve()]
    mirror.script = [redirect(server.url)]
    assert get(server.url, allowed_hosts=[f"{HOST}:{mirror.server_port}"]) == BODY


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/file", "http://[bad/", "//", "http://localhost/file", None],
)
def test_a_redirect_out_of_http_to_another_name_or_in_circles_is_refused(server, get, target: str | None):
    server.script = [redirect(target or server.url)]
    get.refused(server.url, allowed_hosts=[HOST, ""])


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key and its certificate for 127.0.0.1, trusted for this test."""
    path = tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    )
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    subprocess.run(
        [*command.split(), "-addext", f"subjectAltName=IP:{HOST}", "-keyout", "key.pem", "-out", "crt.pem"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    path.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "crt.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


def test_a_redirect_from_https_to_http_is_refused_even_to_a_listed_host(certificate, mirror, get):
    with FaultyServer(BODY, certificate) as secure:
        secure.script = [redirect(mirror.url), serve()]
        assert mirror.url in get.refused(secure.url, allowed_hosts=[HOST])
        assert mirror.requests == []
        assert get(secure.url) == BODY


def test_a_redirect_from_http_to_https_is_followed(certificate, server, get):
    with FaultyServer(BODY, certificate) as secure:
        server.script = [redirect(secure.url)]
        assert get(server.url, allowed_hosts=[HOST]) == BODY


def test_an_untrusted_certificate_is_refused(certificate, get, monkeypatch):
    with FaultyServer(BODY, certificate) as secure:
        monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
        assert "CERTIFICATE_VERIFY_FAILED" in get.refused(secure.url)


# The disk


def test_a_disk_too_small_is_noticed_before_the_body_and_the_part_survives(server, get, monkeypatch):
    part = get.half(server)
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "free")
        patch.setattr(part_module.shutil, "disk_usage", lambda _: usage(part_module.SPARE_BYTES + HALF - 1))
        assert str(get.dest.parent) in get.refused(server.url)
    assert part.stat().st_size == HALF
    assert get(server.url) == BODY


def test_a_disk_that_fills_up_meanwhile_is_named_and_the_part_survives(server, get):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))  # the system's own error on writing more
    try:
        message = get.refused(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message
    assert get(server.url) == BODY
    assert server.requests[-1].start > 0


def test_a_folder_in_the_way_is_named(server, get):
    get.dest.mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a folder"):
        get(server.url)
    assert server.requests == []


# Messages


def test_when_all_mirrors_fail_each_is_named_with_its_cause_and_the_remedy(server, mirror, get):
    server.script = [status(404)]
    mirror.script = [other_body(b"wrong")]
    message = get.refused(server.url, mirror.url)
    assert f"{server.url}: answered 404" in message
    assert f"{mirror.url}: expected sha256" in message
    assert str(get.dest) in message
    assert "by hand" in message


def test_secrets_in_a_url_are_used_but_never_shown_logged_or_stored(server, get, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server.script = [drop_after(HALF), status(404)]
    message = get.refused(server.url.replace("://", "://user:hunter2@") + "?token=hunter2#hunter2")
    assert "token=hunter2" in server.requests[0].path
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    stored = "".join(path.name + path.read_text("latin-1") for path in get.dest.parent.iterdir())
    for text in (message, caplog.text, stored, *capfd.readouterr()):
        assert "hunter2" not in text


def test_a_later_run_resumes_the_part_also_with_a_new_token(server, get):
    get.half(server, "?token=old")
    assert get(server.url + "?token=new") == BODY
    assert server.requests[-1].start == HALF
