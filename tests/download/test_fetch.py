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
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import certifi
import pytest

from pipeline.download import fetch as download
from pipeline.download import part as part_module
from pipeline.download.checksum import Record
from pipeline.download.fetch import fetch
from pipeline.download.limits import Patience
from pipeline.download.urls import shown
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
QUICK = Patience(stall_s=1.0, window_s=2.0, window_bytes=4096, tries=3, backoff_s=0.01, retry_after_max_s=0.3)
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

    def __init__(self, folder: Path) -> None:
        self.dest = folder / "data" / "file.tar"
        self.part_dir = folder / "downloads"

    def __call__(
        self, *urls: str, checksum: str = SHA256, patience: Patience = QUICK, **options: object
    ) -> bytes:
        path = fetch(urls, self.dest, checksum=checksum, part_dir=self.part_dir, patience=patience, **options)
        assert path == self.dest
        return path.read_bytes()

    def refused(self, *urls: str, **options: object) -> str:
        """The message; holds that nothing appeared at the final name."""
        with pytest.raises(DownloadError) as refusal:
            self(*urls, **options)
        assert not self.dest.exists()
        return str(refusal.value)

    def files(self, ending: str) -> list[Path]:
        return sorted(self.part_dir.glob(f"*{ending}"))


@pytest.fixture
def get(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path)


# What is fetched


@pytest.mark.parametrize("checksum", [SHA256, SHA256.upper().replace("SHA", "sha"), SHA256[:15], MD5])
def test_a_file_is_fetched_and_no_part_is_left(server: FaultyServer, get: Fetch, checksum: str) -> None:
    assert get(server.url, checksum=checksum) == BODY
    assert get.files(".part") == get.files(".json") == []


def test_an_empty_file_is_fetched(get: Fetch) -> None:
    with FaultyServer(b"") as server:
        assert get(server.url, checksum=f"md5:{hashlib.md5().hexdigest()}") == b""


def test_a_file_already_there_is_not_asked_for_again(server: FaultyServer, get: Fetch) -> None:
    get(server.url)
    server.requests.clear()
    assert get(server.url) == BODY
    assert server.requests == []


def test_a_file_there_with_another_hash_is_replaced(server: FaultyServer, get: Fetch) -> None:
    get.dest.parent.mkdir()
    get.dest.write_bytes(b"old")
    assert get(server.url) == BODY


def test_a_file_there_with_another_hash_is_named_when_no_mirror_helps(
    server: FaultyServer, get: Fetch
) -> None:
    get.dest.parent.mkdir()
    get.dest.write_bytes(b"old")
    server.script = [status(404)]
    with pytest.raises(DownloadError, match=hashlib.sha256(b"old").hexdigest()):
        get(server.url)


@pytest.mark.parametrize(
    "checksum",
    [
        *("", "sha256:", "md5:", SHA256[7:], "sha256:1234567", "sha256:" + "0" * 65, "md5:" + "0" * 31),
        *("sha1:" + "0" * 40, "sha256:" + "g" * 64, "sha256:0000 0000", "md5:" + "0" * 31 + "\n"),
    ],
)
def test_a_missing_or_malformed_checksum_is_refused(server: FaultyServer, get: Fetch, checksum: str) -> None:
    assert "checksum" in get.refused(server.url, checksum=checksum)
    assert server.requests == []


def test_no_mirror_at_all_is_refused(get: Fetch) -> None:
    assert "none is listed" in get.refused()


def test_a_file_url_is_copied_and_verified(tmp_path: Path, get: Fetch) -> None:
    source = tmp_path / "a name with spaces"
    source.write_bytes(BODY)
    assert get(source.as_uri()) == BODY
    assert source.read_bytes() == BODY


def test_a_file_url_to_nothing_a_folder_a_pipe_or_a_wrong_file_gives_way_to_the_next(
    tmp_path: Path, server: FaultyServer, get: Fetch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "wrong").write_bytes(b"wrong")
    names = ("absent", "", "pipe", "wrong")
    assert get(*((tmp_path / name).as_uri() for name in names), server.url) == BODY


@pytest.mark.parametrize(
    "url", ["ftp://host/file", "no url", "http://", "http://[bad/", "http://host:port/", ""]
)
def test_what_is_no_usable_url_gives_way_to_the_next(server: FaultyServer, get: Fetch, url: str) -> None:
    assert get(url, server.url) == BODY


def test_a_part_folder_on_another_disk_is_fine(server: FaultyServer, get: Fetch) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == get.dest.parent.parent.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    get.part_dir = memory / f"test_download_{os.getpid()}"
    try:
        assert get(server.url) == BODY
        assert get.files(".part") == []
        assert sorted(get.dest.parent.iterdir()) == [get.dest, Record.path(get.dest)]
    finally:
        shutil.rmtree(get.part_dir)


# Dropped connections and killed clients


def test_a_dropped_connection_is_resumed_with_range_and_if_range(server: FaultyServer, get: Fetch) -> None:
    server.script = [drop_after(HALF), serve()]
    assert get(server.url) == BODY
    assert server.requests[1].start == HALF
    assert server.requests[1].headers["If-Range"] == server.etag


def test_a_later_run_resumes_where_the_earlier_one_ended(server: FaultyServer, get: Fetch) -> None:
    server.script = [drop_after(HALF), status(404), serve()]
    get.refused(server.url)
    assert get(server.url) == BODY
    assert server.requests[2].start == HALF


def test_a_line_that_drops_often_but_brings_something_each_time_is_endured(get: Fetch) -> None:
    body = os.urandom(8 * 2**20)
    with FaultyServer(body) as server:
        server.script = [drop_after(2**20 + 1)]
        assert get(server.url, checksum=f"md5:{hashlib.md5(body).hexdigest()}") == body
        assert len(server.requests) > QUICK.tries


def test_a_server_that_drops_and_can_not_resume_is_given_up(get: Fetch) -> None:
    with FaultyServer(os.urandom(4 * 2**20)) as server:
        server.script = [drop_after(3 * 2**20, ETag=None)]
        assert "gave up" in get.refused(server.url)
        assert len(server.requests) == QUICK.tries


def test_last_modified_serves_where_the_etag_is_weak(server: FaultyServer, get: Fetch) -> None:
    date = formatdate(0, usegmt=True)
    server.script = [drop_after(HALF, ETag='W/"1"', Last_Modified=date), serve()]
    assert get(server.url) == BODY
    assert server.requests[1].headers["If-Range"] == date


CLIENT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
import sys
from pathlib import Path
from pipeline.download.checksum import Record
from pipeline.download.fetch import fetch
fetch([sys.argv[1]], Path(sys.argv[2]), checksum=sys.argv[3], part_dir=Path(sys.argv[4]))
"""


def start_client(get: Fetch, url: str, checksum: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLIENT, url, str(get.dest), checksum, str(get.part_dir)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_client_goes_on_and_at_most_1_mib_is_sent_twice(get: Fetch, end: signal.Signals) -> None:
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


def test_a_client_killed_between_the_last_byte_and_the_move_asks_for_nothing_again(
    server: FaultyServer, get: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(server.url)
    server.requests.clear()
    assert get(server.url) == BODY
    assert server.requests == []


def test_two_processes_at_once_fetch_once(get: Fetch) -> None:
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
def test_a_server_that_does_not_go_on_at_the_asked_place_means_start_again(
    server: FaultyServer, get: Fetch, second: Behaviour
) -> None:
    server.script = [drop_after(HALF), second, serve()]
    assert get(server.url) == BODY
    assert server.requests[1].start == HALF
    assert server.requests[-1].start == (HALF if len(server.requests) == 2 else 0)


def test_a_file_changed_on_the_server_between_runs_is_fetched_from_0(
    server: FaultyServer, get: Fetch
) -> None:
    server.script = [drop_after(HALF, ETag='"older"'), status(404), serve()]
    get.refused(server.url)
    assert get(server.url) == BODY
    assert server.requests[2].headers["If-Range"] == '"older"'


def spoil_bytes(part: Path) -> None:
    part.write_bytes(bytes(HALF))


def spoil_length(part: Path) -> None:
    part.write_bytes(BODY + b"too much")


def spoil_whole(part: Path) -> None:
    part.write_bytes(bytes(len(BODY)))


def lose_note(part: Path) -> None:
    part.with_suffix(".json").unlink()


def spoil_note(part: Path) -> None:
    part.with_suffix(".json").write_text("[1, ")


def empty_note(part: Path) -> None:
    part.with_suffix(".json").write_text("[]")


def note_of_another_url(part: Path) -> None:
    note = json.loads(part.with_suffix(".json").read_text())
    part.with_suffix(".json").write_text(json.dumps(note | {"source": "http://elsewhere/file"}))


@pytest.mark.parametrize(
    "spoil", [spoil_bytes, spoil_length, spoil_whole, lose_note, spoil_note, empty_note, note_of_another_url]
)
def test_a_stale_part_is_never_made_longer(server: FaultyServer, get: Fetch, spoil) -> None:
    server.script = [drop_after(HALF), status(404)]
    get.refused(server.url)
    spoil(*get.files(".part"))
    server.script = [serve()]
    server.requests.clear()
    assert get(server.url) == BODY
    assert server.requests[-1].start == 0


def test_a_server_without_validators_is_asked_from_0(server: FaultyServer, get: Fetch) -> None:
    server.script = [drop_after(HALF, ETag=None), serve()]
    assert get(server.url) == BODY
    assert "Range" not in server.requests[1].headers


# Error statuses


@pytest.mark.parametrize("code", [204, 304, 400, 401, 403, 404, 410, 501])
def test_a_lasting_error_status_gives_way_to_the_next_mirror_at_once(
    server: FaultyServer, mirror: FaultyServer, get: Fetch, code: int
) -> None:
    server.script = [status(code, b"")]
    assert get(server.url, mirror.url) == BODY
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_status_is_tried_again(server: FaultyServer, get: Fetch, code: int) -> None:
    server.script = [status(code), status(code), serve()]
    assert get(server.url) == BODY


@pytest.mark.parametrize("code", [429, 500, 503])
def test_tries_are_bounded_and_then_comes_the_next_mirror(
    server: FaultyServer, mirror: FaultyServer, get: Fetch, code: int
) -> None:
    server.script = [status(code)]
    assert get(server.url, mirror.url, patience=UNHURRIED) == BODY
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
    server: FaultyServer, get: Fetch, retry_after: str, least_s: float, most_s: float, monkeypatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.script = [status(429, Retry_After=retry_after), serve()]
    assert get(server.url) == BODY
    assert len(waits) == 1
    assert least_s <= waits[0] <= most_s


def test_a_server_that_is_not_there_gives_way_to_the_next(mirror: FaultyServer, get: Fetch) -> None:
    with FaultyServer() as gone:
        url = gone.url
    assert get(url, mirror.url) == BODY


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
    server: FaultyServer, mirror: FaultyServer, get: Fetch, behaviour: Behaviour
) -> None:
    server.script = [behaviour]
    message = get.refused(server.url)
    assert f"expected sha256 {SHA256[7:]}, found " in message
    assert len(server.requests) == 1
    assert get(server.url, mirror.url) == BODY


def test_a_page_is_called_a_page(server: FaultyServer, get: Fetch) -> None:
    server.script = [WRONG["html_page"]]
    assert "an HTML page" in get.refused(server.url)


def test_a_truncated_body_is_never_taken_for_whole(server: FaultyServer, get: Fetch) -> None:
    server.script = [drop_after(HALF, ETag=None)]
    assert "connection lost" in get.refused(server.url)


def test_a_body_without_content_length_is_taken_if_the_hash_is_right(
    server: FaultyServer, get: Fetch
) -> None:
    server.script = [without_length()]
    assert get(server.url) == BODY


def test_bytes_are_stored_as_sent_even_if_called_gzip(server: FaultyServer, get: Fetch) -> None:
    server.script = [serve(Content_Encoding="gzip")]  # some servers say so of every .tgz
    assert get(server.url) == BODY
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


# Too much, too slow


def test_a_content_length_above_the_maximum_is_refused_before_the_body(
    server: FaultyServer, get: Fetch
) -> None:
    server.script = [drop_after(0, Content_Length=10**15)]
    assert "announces 1000000000000000 bytes" in get.refused(server.url)
    assert get.files(".part") == []


def test_a_body_longer_than_the_maximum_is_cut_off_there(server: FaultyServer, get: Fetch) -> None:
    server.script = [endless(bytes(65536))]
    assert f"more than the {len(BODY)} bytes" in get.refused(server.url, max_bytes=len(BODY))
    assert server.requests[0].num_sent < 30 * len(BODY)  # what fits the buffers of both systems


def test_a_resumed_body_longer_than_announced_is_cut_off_there(server: FaultyServer, get: Fetch) -> None:
    span = f"bytes {HALF}-{len(BODY) - 1}/{len(BODY)}"
    server.script = [drop_after(HALF), endless(bytes(65536), Content_Range=span, ETag=server.etag)]
    assert f"more than the {len(BODY)} bytes" in get.refused(server.url)


def test_a_content_length_of_5000_digits_is_an_error_not_a_crash(server: FaultyServer, get: Fetch) -> None:
    server.script = [drop_after(0, Content_Length="9" * 5000)]
    get.refused(server.url)


@pytest.mark.parametrize("behaviour", [silent(), stall_after(0), stall_after(HALF)])
def test_a_stall_ends_and_keeps_the_part(server: FaultyServer, get: Fetch, behaviour: Behaviour) -> None:
    server.script = [behaviour, serve()]
    start = time.monotonic()
    assert "stalled" in get.refused(server.url)
    assert time.monotonic() - start < 5 * QUICK.stall_s
    assert get(server.url) == BODY


@pytest.mark.parametrize(
    "behaviour", [slow(1, 0.05), trickling_headers(0.05)], ids=["in_the_body", "in_the_headers"]
)
def test_a_trickle_ends(server: FaultyServer, get: Fetch, behaviour: Behaviour) -> None:
    server.script = [behaviour]
    start = time.monotonic()
    assert "too slow" in get.refused(server.url)
    assert time.monotonic() - start < 2.5 * QUICK.window_s


def test_a_slow_but_steady_body_longer_than_the_window_is_endured(server: FaultyServer, get: Fetch) -> None:
    server.script = [slow(len(BODY) // 20, 0.15)]
    start = time.monotonic()
    assert get(server.url) == BODY
    assert time.monotonic() - start > QUICK.window_s


def test_by_default_a_stall_ends_within_30_s_and_a_trickle_within_60_s() -> None:
    assert Patience().stall_s <= 25
    assert 2 * Patience().window_s <= 55  # one window for the headers, one for the body


# Redirects


def test_a_redirect_on_the_same_server_is_followed(server: FaultyServer, get: Fetch) -> None:
    server.script = [redirect("/elsewhere/file.tar"), serve()]
    assert get(server.url) == BODY
    assert server.requests[1].path == "/elsewhere/file.tar"


@pytest.mark.parametrize("listed", [HOST, "host_and_port"])
def test_a_redirect_to_another_host_needs_it_listed(
    server: FaultyServer, mirror: FaultyServer, get: Fetch, listed: str
) -> None:
    server.script = [redirect(f"{mirror.url}?token=secret")]
    message = get.refused(server.url, allowed_hosts=["example.org"])
    assert f"redirects to {mirror.url}, a host not in allowed_hosts; refused" in message
    assert mirror.requests == []
    if listed == "host_and_port":
        listed = f"{HOST}:{mirror.server_port}"
    assert get(server.url, allowed_hosts=[listed]) == BODY


def test_a_redirect_to_another_name_of_the_same_machine_is_another_host(
    server: FaultyServer, get: Fetch
) -> None:
    server.script = [redirect(server.url.replace(HOST, "localhost"))]
    assert "refused" in get.refused(server.url)


def test_a_redirect_that_comes_back_by_way_of_a_listed_host_is_followed(
    server: FaultyServer, mirror: FaultyServer, get: Fetch
) -> None:
    server.script = [redirect(mirror.url), serve()]
    mirror.script = [redirect(server.url)]
    assert get(server.url, allowed_hosts=[f"{HOST}:{mirror.server_port}"]) == BODY


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/file", "http://[bad/", "//"])
def test_a_redirect_out_of_http_is_refused(server: FaultyServer, get: Fetch, target: str) -> None:
    server.script = [redirect(target)]
    get.refused(server.url, allowed_hosts=[HOST, ""])


def test_a_redirect_in_circles_ends(server: FaultyServer, get: Fetch) -> None:
    server.script = [redirect(server.url)]
    assert "redirects more than" in get.refused(server.url)


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


def test_a_redirect_from_https_to_http_is_refused_even_to_a_listed_host(
    certificate: Path, mirror: FaultyServer, get: Fetch
) -> None:
    with FaultyServer(BODY, certificate) as secure:
        secure.script = [redirect(mirror.url), serve()]
        assert "not https; refused" in get.refused(secure.url, allowed_hosts=[HOST])
        assert mirror.requests == []
        assert get(secure.url) == BODY


def test_a_redirect_from_http_to_https_is_followed(
    certificate: Path, server: FaultyServer, get: Fetch
) -> None:
    with FaultyServer(BODY, certificate) as secure:
        server.script = [redirect(secure.url)]
        assert get(server.url, allowed_hosts=[HOST]) == BODY


def test_an_untrusted_certificate_is_refused(
    certificate: Path, get: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(BODY, certificate) as secure:
        monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
        assert "CERTIFICATE_VERIFY_FAILED" in get.refused(secure.url)


# The disk


def test_a_disk_too_small_is_noticed_before_the_body_and_the_part_survives(
    server: FaultyServer, get: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [drop_after(HALF), status(404), serve()]
    get.refused(server.url)
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "free")
        patch.setattr(part_module.shutil, "disk_usage", lambda _: usage(part_module.SPARE_BYTES + HALF - 1))
        message = get.refused(server.url)
    assert "free" in message
    assert str(get.part_dir) in message
    assert [part.stat().st_size for part in get.files(".part")] == [HALF]
    assert get(server.url) == BODY


def test_a_disk_that_fills_up_meanwhile_is_named_and_the_part_survives(
    server: FaultyServer, get: Fetch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))  # the system's own error on writing more
    try:
        message = get.refused(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message
    assert get(server.url) == BODY
    assert server.requests[-1].start > 0


def test_a_folder_in_the_way_is_named(server: FaultyServer, get: Fetch) -> None:
    get.dest.mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a folder"):
        get(server.url)
    assert server.requests == []


# Messages


def test_when_all_mirrors_fail_each_is_named_with_its_cause_and_the_remedy(
    server: FaultyServer, mirror: FaultyServer, get: Fetch
) -> None:
    server.script = [status(404)]
    mirror.script = [other_body(b"wrong")]
    message = get.refused(server.url, mirror.url)
    assert f"{server.url}: answered 404" in message
    assert f"{mirror.url}: expected sha256" in message
    assert str(get.dest) in message
    assert "by hand" in message


def test_secrets_in_a_url_are_used_but_never_shown_logged_or_stored(
    server: FaultyServer, get: Fetch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script = [drop_after(HALF), status(404)]
    message = get.refused(server.url.replace("://", "://user:hunter2@") + "?token=hunter2#hunter2")
    assert "token=hunter2" in server.requests[0].path
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    stored = "".join(path.name + path.read_text("latin-1") for path in get.part_dir.iterdir())
    for text in (message, caplog.text, stored, *capfd.readouterr()):
        assert "hunter2" not in text


def test_a_part_is_resumed_when_only_the_token_is_new(server: FaultyServer, get: Fetch) -> None:
    server.script = [drop_after(HALF), status(404), serve()]
    get.refused(server.url + "?token=old")
    assert get(server.url + "?token=new") == BODY
    assert server.requests[-1].start == HALF


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/path/file.tar", "https://host/path/file.tar"),
        ("https://host:8080/path?token=x", "https://host:8080/path"),
        ("https://user@host/path#x", "https://host/path"),
        ("https://user:word@host/path", "https://host/path"),
        ("https://user:w/o?r#d@host/path", "https://host/path"),
        ("user:word@host/path", "host/path"),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, expected: str) -> None:
    assert shown(url) == expected
