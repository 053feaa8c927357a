"""`fcn serve` behind a proxy: its names and prefix, what Prometheus reads, and clients that never send a request."""

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from pipeline.serving import slow_senders
from tests.photo_net import encoded, noise
from tests.serving.test_app import WAIT, server

NAME = "segment.example.org"


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    with server(model, "--allowed-host", NAME, "--root-path", "/segment/") as (url, _):
        yield url


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (NAME, f"https://{NAME}", 200),  # the proxy passes Host on
        (None, f"https://{NAME}", 200),  # nginx's default: Host is the address of proxy_pass
        (f"{NAME.upper()}:8443", f"https://{NAME}:8443", 200),
        (NAME, f"https://{NAME}:8443", 200),
        (NAME, None, 200),
        (NAME, "https://evil.example", 403),
        (None, f"https://{NAME}.evil.example", 403),
        (None, "http://[", 403),
        (None, "null", 403),
        ("evil.example", f"https://{NAME}", 400),
    ],
)
def test_the_names_that_were_allowed_and_no_others_may_use_it(url, host, origin, status):
    headers = {name: value for name, value in (("host", host), ("origin", origin)) if value}
    answer = httpx.post(f"{url}/predict", content=encoded(noise(4, 4)), headers=headers, timeout=WAIT)
    assert answer.status_code == status


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
def test_the_prefix_may_stay_in_the_path_or_be_taken_away(url, path):
    for prefix in ("", "/segment"):
        assert httpx.get(f"{url}{prefix}{path}", timeout=WAIT).status_code == 200
    assert httpx.get(f"{url}/other{path}", timeout=WAIT).status_code == 404


def test_prometheus_reads_the_answers_by_status(model):
    with server(model) as (url, _):
        for content in (encoded(noise(4, 4)), encoded(noise(4, 5)), b"no photo"):
            httpx.post(f"{url}/predict", content=content, timeout=WAIT)
        lines = httpx.get(f"{url}/metrics", timeout=WAIT).text.splitlines()
    assert 'fcn_answers_total{status="200"} 2.0' in lines
    assert 'fcn_answers_total{status="415"} 1.0' in lines
    assert "fcn_seconds_count 2.0" in lines
    assert "fcn_requests 0.0" in lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"]
)
def test_a_client_that_never_ends_the_head_of_a_request_is_dropped(url, sent):
    host, _, port = url.removeprefix("http://").partition(":")
    start = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=WAIT) as connection:
        connection.sendall(sent)
        while connection.recv(2**16):
            pass
    assert time.monotonic() - start < slow_senders.HEAD_S + WAIT / 2
