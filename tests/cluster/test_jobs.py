"""What goes to a cluster and which job servers are not trusted; cluster/test_cluster.py has those that are."""

import http.server
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import jobs
from pipeline.errors import UserError


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
    with pytest.raises(UserError, match=r"come to 2 MiB, and 1 at most .* the largest are voc\.tar, "):
        jobs.pack(checkout, tmp_path / "code.zip")


def test_a_folder_without_git_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no git checkout"):
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


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """A loopback server's address, and the status it answers everything with."""
    status = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", status
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", ""])
def test_an_address_that_is_no_job_servers_is_refused(address: str):
    with pytest.raises(UserError, match="is no address of a job server"):
        jobs.connect(address)


def test_a_job_server_that_asks_for_no_token_is_refused(server):
    with pytest.raises(UserError, match="answers without a token, so whoever reaches it can run programs"):
        jobs.connect(server[0])


def test_a_server_that_is_no_job_server_is_said_to_be_none(server):
    server[1][0] = 404
    with pytest.raises(UserError, match=r"is no job server of Ray's: it answers 404"):
        jobs.connect(server[0])


def test_nobody_there_is_said_with_what_to_do():
    with pytest.raises(UserError, match=r"no job server answers at .* \(.*refused.*\): start a cluster"):
        jobs.connect("http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["http://8.8.8.8:8265", "http://[2001:4860:4860::8888]:8265"])
def test_a_token_never_crosses_the_internet_unencrypted(address: str):
    with pytest.raises(UserError, match="is on the internet and not encrypted"):
        jobs.connect(address)


@pytest.mark.parametrize("address", ["http://10.1.2.3:1", "http://127.0.0.1:1", "https://8.8.8.8:1"])
def test_private_and_encrypted_roads_are_open(address: str):
    jobs._refuse_open_road(address)


@pytest.mark.parametrize("folder", ["fcn", "./fcn", "~/fcn", "/shared/../etc"])
def test_a_folder_that_nodes_would_not_agree_on_is_refused(folder: str, checkout):
    with pytest.raises(UserError, match="--folder must be an absolute path"):
        jobs.submit(None, folder, [], checkout)
