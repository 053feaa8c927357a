"""What goes to a cluster, and which job servers are not trusted; test_cluster.py submits jobs."""

import contextlib
import http.server
import os
import re
import socket
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline.cluster import jobs
from pipeline.errors import UserError

from ray.exceptions import AuthenticationError  # isort: skip  # jobs sets Ray's environment
from ray.job_submission import JobStatus  # isort: skip


@pytest.fixture
def checkout(tmp_path) -> Path:
    root = tmp_path / "checkout"
    for name, text in {
        "params.yaml": "profile: sample",
        "fcn/model.py": "tracked",
        "new.yaml": "not yet tracked",
        "data/image.jpg": "data",
        ".gitignore": "/data/",
        "gone.py": "deleted since",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for command in (["init", "-q"], ["add", "params.yaml", "fcn", ".gitignore", "gone.py"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / "gone.py").unlink()
    return root


def names(package: Path) -> set[str]:
    with zipfile.ZipFile(package) as opened:
        return set(opened.namelist())


def test_code_goes_to_the_cluster_and_data_and_history_stay(checkout, tmp_path):
    jobs.pack(checkout, tmp_path / "code.zip")
    assert names(tmp_path / "code.zip") == {"params.yaml", "fcn/model.py", "new.yaml", ".gitignore"}
    with zipfile.ZipFile(tmp_path / "code.zip") as package:
        assert package.read("new.yaml") == b"not yet tracked"


def test_the_same_code_makes_the_same_package(checkout, tmp_path):
    jobs.pack(checkout, tmp_path / "a.zip")
    for path in checkout.rglob("*.py"):
        os.utime(path, (0, 0))
    jobs.pack(checkout, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_data_that_git_does_not_ignore_is_named_and_not_sent(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_UPLOAD_MB", 1)
    (checkout / "voc.tar").write_bytes(bytes(2**21))
    with pytest.raises(UserError, match=r"2 MiB.*voc\.tar"):
        jobs.pack(checkout, tmp_path / "code.zip")


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"two\nlines"])
def test_a_file_whose_name_no_zip_or_list_can_have_is_named(checkout, tmp_path, name):
    (checkout / os.fsdecode(name)).touch()
    with pytest.raises(UserError, match=r"(caf|two\\n).*gitignore"):
        jobs.pack(checkout, tmp_path / "code.zip")


def test_a_folder_without_git_is_refused(tmp_path):
    with pytest.raises(UserError, match="git checkout"):
        jobs.pack(tmp_path, tmp_path / "code.zip")


def test_a_tracking_server_is_passed_on_and_a_database_of_this_machine_is_not(checkout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db")
    assert "MLFLOW_TRACKING_URI" not in jobs.environment(checkout)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert jobs.environment(checkout)["MLFLOW_TRACKING_URI"] == "https://mlflow.example.org"


def test_no_secret_is_among_a_jobs_variables(checkout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.org")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(UserError) as refused:
        jobs.environment(checkout)
    assert "hunter2" not in str(refused.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "hunter2" not in str(jobs.environment(checkout))


# --- which servers are trusted


@contextlib.contextmanager
def server(status: int) -> Iterator[str]:
    """The address of a server on loopback that answers everything with this status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:8265", "URL"),
        ("ray://127.0.0.1:10001", "URL"),
        ("auto", "URL"),
        ("", "URL"),
        ("http://", "URL"),
        ("http://[", "URL"),
        ("http://localhost:abc", "URL"),
        ("http://localhost:99999", "URL"),
        ("http://a..b", "no such host"),
        ("http://127.0.0.1:9/x y", "URL"),
        ("http://127.0.0.1:9", "refused"),
        ("http://8.8.8.8:8265", "not encrypted"),
        ("http://[2001:4860:4860::8888]:8265", "not encrypted"),
    ],
)
def test_an_address_without_a_job_server_or_with_an_unsafe_way_is_refused(address: str, reason: str):
    with pytest.raises(UserError, match=f"(?s){re.escape(address)}.*{reason}|{reason}.*{re.escape(address)}"):
        jobs.connect(address)


@pytest.mark.parametrize(("status", "reason"), [(200, "without a token"), (404, "404")])
def test_a_server_that_lets_everyone_in_or_has_no_jobs_is_refused(status: int, reason: str):
    with server(status) as address, pytest.raises(UserError, match=f"{address} .*{reason}"):
        jobs.connect(address)


def test_a_port_that_speaks_another_protocol_is_refused():
    """As a head's port where nodes join, which sends HTTP/2."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x04\x00?\xff\xff\n\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"{address} .*8265"):
            jobs.connect(address)


# --- servers that fail later


class FailingClient:
    """A client whose every request ends in an error, or for which every job runs on."""

    def __init__(self, error: Exception | None):
        self.error = error

    def _ask(self, *_: object, **__: object) -> JobStatus:
        if self.error:
            raise self.error
        return JobStatus.RUNNING

    list_jobs = submit_job = stop_job = get_job_status = tail_job_logs = _ask


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AuthenticationError("no"), "auth_token"),
        (requests.exceptions.ConnectionError("reset"), "ConnectionError"),
        (RuntimeError("Request failed with status code 500"), "500"),
        (RuntimeError("Job a does not exist"), "job a"),
    ],
)
def test_a_request_that_fails_ends_in_one_message(checkout, monkeypatch, error, reason):
    monkeypatch.setattr(jobs, "PATIENCE_S", -1.0)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(jobs.config, "load", lambda _: None)
    client, messages = FailingClient(error), []
    for request in (
        lambda: jobs.submit(client, "/shared", [], checkout),
        lambda: jobs.follow(client, "a"),
        lambda: jobs.stop(client, "a"),
    ):
        with pytest.raises(UserError) as caught:
            request()
        messages.append(str(caught.value))
    assert all(reason in message for message in messages[1:])  # of one job


def test_a_job_that_does_not_end_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
    monkeypatch.setattr(jobs, "STOP_WAIT_S", 0)
    with pytest.raises(UserError, match="job a"):
        jobs.stop(FailingClient(None), "a")


@pytest.mark.parametrize("address", ["http://10.1.2.3:1", "http://127.0.0.1:1", "https://8.8.8.8:1"])
def test_private_and_encrypted_ways_are_open(address: str):
    jobs._refuse_unencrypted(address)


@pytest.mark.parametrize("folder", ["fcn", "./fcn", "~/fcn", "/shared/../etc"])
def test_a_folder_that_differs_between_nodes_is_refused(folder: str, checkout):
    with pytest.raises(UserError, match="--folder"):
        jobs.submit(None, folder, [], checkout)
