"""Training on a Ray cluster that is there already, named by RAY_ADDRESS or reached by `ray job submit`."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import checkpoint
from tests.project_copy import Project
from tests.test_pipeline import tiny

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Head(dict):
    """A cluster's head: the environment a client needs."""

    address: str
    dashboard: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A real head with token authentication, in a session folder of its own."""
    with tempfile.TemporaryDirectory(prefix="r") as temp:  # short: Ray puts sockets below it
        token = Path(temp, "token")
        token.write_text("0123456789abcdef" * 4)
        head = Head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
        port, dashboard = free_port(), free_port()
        command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
        command += ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={temp}/s"]
        process = subprocess.Popen(
            command,
            env=os.environ | head,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        head.address, head.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        for _ in range(120):
            if (
                subprocess.run(
                    [RAY, "status", "--address", head.address],
                    env=os.environ | head,
                    capture_output=True,
                    check=False,
                ).returncode
                == 0
            ):
                break
            time.sleep(1)
        else:
            pytest.fail("the head did not start")
        yield head
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.use_profile("tiny", tiny(project.profile("sample")))
    project.run("dvc", "repro", "shard", "backbone")
    return project


def test_a_stage_joins_the_cluster_that_ray_address_names(project, head):
    log = project.run("dvc", "repro", "train@fcn32s", RAY_ADDRESS=head.address, **head)
    assert "Started a local Ray instance" not in log
    assert "Connecting to existing Ray cluster at address" in log
    checkpoint.load(project.folder / "models" / "tiny" / "fcn32s.pt", "model")


def test_the_pipeline_runs_as_a_submitted_job(project, head):
    here = Path(sys.executable).parent
    entrypoint = f"cd {project.folder} && PATH={here}:$PATH dvc repro train@fcn32s"
    log = project.run(
        RAY, "job", "submit", "--address", head.dashboard, "--", "bash", "-c", entrypoint, **head
    )
    assert "succeeded" in log
    checkpoint.load(project.folder / "models" / "tiny" / "fcn32s.pt", "model")
