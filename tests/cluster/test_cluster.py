"""Training on a Ray cluster of two nodes, started by `fcn cluster head` and `join`: as jobs, and as a command there."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from mlflow import MlflowClient

from pipeline import git
from pipeline.models import checkpoint
from tests.project_copy import Project
from tests.stages.test_chain import tiny

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
FCN = str(BIN / "fcn")
LONG = 2000  # steps, which take longer than a stop


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster(NamedTuple):
    """A cluster on this machine.

    address: HOST:PORT of the head.
    dashboard: URL of its job server.
    client: environment variables that a client needs.
    session: Ray's folder.
    nodes: the processes of head and second node.
    """

    address: str
    dashboard: str
    client: dict[str, str]
    session: Path
    nodes: list[subprocess.Popen[bytes]]


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [FCN, "cluster", *command],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with a CPU each, so that two workers need both."""
    with tempfile.TemporaryDirectory(prefix="r") as temp:  # short: Ray puts sockets below it
        port, dashboard = free_port(), free_port()
        client = {"RAY_AUTH_TOKEN_PATH": f"{temp}/token"}
        log = Path(temp, "log")
        options = ["--num-cpus=1", f"--temp-dir={temp}/s"]
        head = ["head", f"--port={port}", "--", *options, f"--dashboard-port={dashboard}"]
        head.append(f"--ray-client-server-port={free_port()}")  # another cluster may have the default one
        nodes = [start(head, client, log)]
        address, job_server = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        try:
            wait_for_nodes(1, address, client, log)
            nodes.append(start(["join", address, "--", *options], client, log.with_name("log2")))
            wait_for_nodes(2, address, client, log)
            yield Cluster(address, job_server, client, Path(temp, "s"), nodes)
        finally:
            for node in reversed(nodes):
                end(node)


def wait_for_nodes(number: int, address: str, client: dict[str, str], log: Path) -> None:
    command = [str(BIN / "ray"), "status", "--address", address]
    for _ in range(60):
        environment = os.environ | client | {"RAY_AUTH_MODE": "token"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if f"{number}.0 CPU" in done.stdout:
            return
        time.sleep(1)
    pytest.fail(f"no {number} nodes: {log.read_text()}\n{done.stdout}{done.stderr}")


def end(node: subprocess.Popen[bytes]) -> None:
    """End a node and the processes it started."""
    if node.poll() is not None:
        return
    children = psutil.Process(node.pid).children(recursive=True)
    node.terminate()
    node.wait(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()


def lose(node: subprocess.Popen[bytes]) -> None:
    """End a node as a power cut does; after SIGTERM it would go on for half a minute, and a short run end in it."""
    if node.poll() is None:
        children = psutil.Process(node.pid).children(recursive=True)
        node.kill()  # first, or it would join again
        for process in children:
            process.kill()
        node.wait()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("checkout"))
    profile = tiny(project.profile("sample"))
    profile["run"]["min_workers"] = 1
    project.use_profile("tiny", profile)
    return project


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder that both nodes see; the jobs work in `fcn` below it."""
    return tmp_path_factory.mktemp("shared")


def submit(project: Project, cluster: Cluster, *arguments: str, fails: bool = False) -> str:
    command = [FCN, "cluster", "submit", "--address", cluster.dashboard, *arguments]
    return project.run(*command, fails=fails, **cluster.client)


def trained(folder: Path, net: str) -> dict:
    return checkpoint.load(folder / "models" / "tiny" / f"{net}.pt", "model")[0]


# --- jobs


def test_a_net_is_trained_on_both_nodes_by_a_job_from_a_checkout(project, cluster, shared):
    log = submit(project, cluster, "fcn32s", "--folder", str(shared / "fcn"))
    assert "fcn32s  4/4  loss " in log
    assert re.search(r"job raysubmit_\w+: succeeded", log)
    assert "check: 1 x 48x48 a worker" in log  # of a batch of 2; each node has a CPU for one worker
    assert trained(shared / "fcn", "fcn32s")["lineage"]["net"] == "fcn32s"
    assert (shared / "fcn" / "metrics" / "tiny" / "fcn32s.json").exists()
    assert not (shared / "fcn" / "models" / "tiny" / "fcn16s.pt").exists()
    for made in ("data", "models", "runs", "mlruns", "mlflow.db"):
        assert not (project.folder / made).exists()


def test_a_jobs_runs_in_mlflow_have_the_checkouts_commit(project, shared):
    client = MlflowClient(f"sqlite:///{shared / 'fcn' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fcn-tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    commit = git.find_commit(project.folder)
    assert commit is not None
    assert "fcn32s" in {run.info.run_name for run in runs}
    for run in runs:
        assert (run.data.tags["git_commit"], run.data.tags["git_dirty"]) == (commit.sha, "true")


def test_the_pipeline_as_a_job_does_what_is_left_to_do(project, cluster, shared):
    log = submit(project, cluster, "--folder", str(shared / "fcn"))
    assert "Stage 'train@fcn32s' didn't change, skipping" in log
    assert "fcn16s  4/4  loss " in log
    assert re.search(r"^fcn8s - fcn16s +mean_iu ", log, re.M)  # the report
    assert trained(shared / "fcn", "fcn8s")["lineage"]["parent"] == "fcn16s"


def test_rays_own_command_submits_a_net_too(project, cluster, shared):
    """The net is trained already in this folder, so the same code arrived."""
    command = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    command += ["--", "python", "-m", "pipeline.cluster.job_main", str(shared / "fcn"), "fcn32s"]
    log = project.run(*command, RAY_AUTH_MODE="token", **cluster.client)
    assert "Stage 'train@fcn32s' didn't change, skipping" in log
    assert re.search(r"Job 'raysubmit_\w+' succeeded", log)


def test_a_failed_job_makes_the_command_fail_with_the_reason(project, cluster, shared):
    log = submit(project, cluster, "--folder", str(shared / "nowhere" / "fcn"), fails=True)
    assert f"error: {shared / 'nowhere'} " in log
    assert "Traceback" not in log
    assert re.search(r"job raysubmit_\w+: failed", log)


def test_a_mistake_in_the_profile_shows_before_anything_is_sent(cluster, tmp_path):
    project = Project(tmp_path)
    project.use_profile("tiny", {"data": {}})
    log = submit(project, cluster, "--folder", "/shared/fcn", fails=True)
    assert log.startswith("error: ")
    assert "profiles/tiny.yaml" in log


def test_ctrl_c_leaves_the_job_running_and_a_stopped_one_goes_on_from_its_checkpoint(
    tmp_path, cluster, shared
):
    project = Project(tmp_path)
    profile = tiny(project.profile("sample"))
    profile["nets"]["fcn32s"]["iterations"] = LONG
    profile["run"]["checkpoint_every"] = LONG  # what is there after a stop was written for it
    project.use_profile("tiny", profile)
    arguments = ["fcn32s", "--folder", str(shared / "other")]
    job = re.search(r"job (\S+): submitted", submit(project, cluster, *arguments, "--no-wait"))
    assert job is not None
    log = submit(project, cluster, *arguments, fails=True)
    assert f"job {job[1]} runs in {shared / 'other'}" in log
    command = [FCN, "cluster", "follow", job[1], "--address", cluster.dashboard]
    watching = subprocess.Popen(
        command, env=os.environ | cluster.client, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert watching.stdout is not None
    for line in watching.stdout:
        if f"/{LONG}  loss" in line:
            break
    watching.send_signal(signal.SIGINT)
    rest, _ = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert f"fcn cluster follow {job[1]}" in rest
    log = project.run(FCN, "cluster", "stop", job[1], "--address", cluster.dashboard, **cluster.client)
    assert log == f"job {job[1]}: ended\n"
    log = project.run(
        FCN, "cluster", "follow", job[1], "--address", cluster.dashboard, fails=True, **cluster.client
    )
    assert f"job {job[1]}: stopped" in log
    (saved,) = (shared / "other" / "runs" / "tiny").glob("fcn32s-*/step-*.pt")
    log = submit(project, cluster, *arguments)
    assert f"fcn32s  resumed from step {int(saved.stem.removeprefix('step-'))}\n" in log
    assert f"fcn32s  {LONG}/{LONG}  loss " in log


# --- access


def test_a_client_without_the_token_is_refused(project, cluster, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    for token in (wrong, tmp_path / "missing"):
        other = cluster._replace(client={"RAY_AUTH_TOKEN_PATH": str(token)})
        log = submit(project, other, "--folder", "/shared/fcn", fails=True)
        assert log.startswith("error: ")
        assert str(token) in log
        assert "Traceback" not in log


def test_only_its_owner_can_read_the_token_and_no_log_has_it(cluster):
    path = Path(cluster.client["RAY_AUTH_TOKEN_PATH"])
    assert path.stat().st_mode & 0o077 == 0
    token = path.read_bytes()
    logs = [path for path in cluster.session.rglob("*") if path.is_file()]
    assert logs
    assert [path for path in logs if token in path.read_bytes()] == []


def test_the_dashboard_and_metrics_listen_on_loopback_only(cluster):
    """What Ray binds wider requires the token, and cannot be bound otherwise (docs/cluster.md)."""
    processes = [psutil.Process(node.pid) for node in cluster.nodes]
    processes += [child for process in processes for child in process.children(recursive=True)]
    ports = set()
    for process in processes:
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in ("127.0.0.1", "::1"):
                ports.add(connection.laddr.port)
    assert int(cluster.dashboard.rpartition(":")[2]) not in ports
    assert not ports & {44217, 44227}  # metrics of autoscaler and dashboard
    assert ports  # gcs and raylets: this test sees them


# --- a command that joins


def test_a_stage_joins_the_cluster_that_ray_address_names(project, cluster):
    project.run("dvc", "repro", "shard", "backbone")
    log = project.run("dvc", "repro", "train@fcn32s", RAY_ADDRESS=cluster.address, **cluster.client)
    assert "Started a local Ray instance" not in log
    assert "Connecting to existing Ray cluster at address" in log
    trained(project.folder, "fcn32s")


def test_a_lost_node_leaves_a_run_with_fewer_workers_that_ends_with_the_same_batches(project, cluster):
    """The last test, because it ends the second node."""
    profile = project.profile("tiny")
    profile["nets"]["fcn32s"]["iterations"] = LONG
    profile["run"]["checkpoint_every"] = 50
    project.use_profile("tiny", profile)
    command = [str(BIN / "dvc"), "repro", "train@fcn32s"]
    environment = os.environ | cluster.client | {"RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lines = []
    run = subprocess.Popen(command, cwd=project.folder, env=environment, **pipe)
    assert run.stdout is not None
    with run.stdout:
        for line in run.stdout:
            lines.append(line)
            if (shown := re.search(rf"fcn32s  (\d+)/{LONG}  loss", line)) and int(shown[1]) >= 50:
                lose(cluster.nodes[1])  # for all later lines too, where it has no effect
    assert run.wait() == 0, "".join(lines)
    log = "".join(lines)
    goes_on = re.search(
        r"resumed from step (\d+); equal but for rounding from here: 1 workers instead of 2", log
    )
    assert goes_on, log
    assert int(goes_on[1]) % 50 == 0
    assert f"fcn32s  {LONG}/{LONG}  loss " in log
    trained(project.folder, "fcn32s")
