"""docs/quickstart.md, followed from its first command to its last; only the training is cut to a few steps."""

import os
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.documented_commands import lines
from tests.project_copy import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

# The copy runs in this environment, which is that of `make setup`
INSTEAD = {"make repro": "dvc repro", ". .venv/bin/activate": "true", "make ui": "fcn tracking ui"}
SERVERS = {"fcn tracking ui": "/", "fcn serve": "/health"}  # they run until Ctrl-C
START_S = 900  # on a busy machine
FEW = 4  # steps of each net; what the whole training gives is in tests/stages/test_sample_result.py


def test_the_quickstart_works_from_its_first_command_to_its_last(tmp_path: Path):
    project = Project(tmp_path)
    project.run("git", "config", "user.name", "t")
    project.run("git", "config", "user.email", "t@example.org")
    profile = project.profile("sample")
    for net in profile["nets"].values():
        net["iterations"] = FEW
    project.use_profile("sample", profile)
    trained = []
    for line in lines("docs/quickstart.md"):
        if line.startswith("git clone"):
            continue
        line = INSTEAD.get(line, line)
        if path := next((path for name, path in SERVERS.items() if line.startswith(name)), None):
            answers_until_stopped(tmp_path, line, path)
        else:
            print(f"$ {line}\n{project.run('bash', '-c', line)[-1500:]}", flush=True)
        if line == "dvc repro":
            trained.append(project.json("metrics/sample/fcn8s.json"))
    photos = tmp_path / "data/sample/raw/VOCdevkit/VOC2012/JPEGImages"
    overlays = {path.stem for path in (tmp_path / "seen" / "overlay").glob("*.png")}
    assert overlays == {path.stem for path in photos.glob("*.jpg")}
    assert (tmp_path / "fcn8s.onnx").stat().st_size > 1e6
    assert (tmp_path / "reports" / "sample" / "index.html").exists()
    assert [
        project.json("metrics/sample/fcn8s.json")
    ] * 2 == trained  # the second run did nothing, the change is undone
    assert project.will_run() == []


def answers_until_stopped(folder: Path, line: str, path: str) -> None:
    """The server prints an address, answers there, and ends on Ctrl-C."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        ["bash", "-c", f"exec {line} --port {port}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout
            seen, deadline = "", time.monotonic() + START_S
            while not (address := re.search(r"http://[\d.]+:\d+", seen)):
                assert time.monotonic() < deadline, seen
                assert server.poll() is None, seen
                if select.select([server.stdout], [], [], 1)[0]:
                    seen += server.stdout.readline()
            while True:
                try:
                    assert httpx.get(address[0] + path, timeout=60).status_code == 200
                    break
                except httpx.TransportError:  # the address is printed before the server listens
                    assert server.poll() is None, seen
                    assert time.monotonic() < deadline, seen
                    time.sleep(1)
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=START_S)
        finally:
            server.kill()
