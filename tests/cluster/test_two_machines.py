"""A cluster of two machines whose names lead to loopback, without a route out: its first job, and what goes wrong.

Each test leaves the cluster whole, with both nodes.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, machines
from tests.project_copy import Project
from tests.stages.test_chain import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FCN = str(Path(sys.executable).parent / "fcn")
STEPS = 3000  # more than a run makes before a test disturbs it
EVERY = 40  # steps between checkpoints
PATIENCE_S = 900  # on a busy machine


class Cluster:
    """Head and node on two machines, and the jobs of a checkout."""

    def __init__(self, pair: tuple[Machine, Machine], project: Project, shared: Path):
        self.one, self.two = pair
        self.project, self.folder = project, shared / "fcn"
        self.address = f"{self.one.address}:6379"
        self.logs = shared
        token = self.two.folder / ".ray" / "auth_token"
        self.start_head()
        token.parent.mkdir()
        token.write_bytes((self.one.folder / ".ray" / "auth_token").read_bytes())
        self.join()

    def start_head(self) -> None:
        self.head_log = self.logs / f"head-{time.monotonic()}"
        command = [FCN, "cluster", "head", "--", "--num-cpus=1"]
        self.head = self.one.start(*command, cwd=self.project.folder, log=self.head_log)
        wait_for(lambda: f"fcn cluster join {self.address}\n" in self.head_log.read_text(), self.head_log)

    def join(self) -> None:
        self.node_log = self.logs / f"node-{time.monotonic()}"
        command = [FCN, "cluster", "join", self.address, "--", "--num-cpus=1"]
        self.node = self.two.start(*command, cwd=self.project.folder, log=self.node_log)
        self.wait_for_joins(1)

    def wait_for_joins(self, number: int) -> None:
        wait_for(
            lambda: self.node_log.read_text().count(f"a node of {self.address}\n") == number, self.node_log
        )

    def submit(self) -> tuple[subprocess.Popen[str], Path]:
        """Submit a net as a job; return the client's process and the job's log."""
        log = self.logs / f"job-{time.monotonic()}"
        command = [FCN, "cluster", "submit", "--folder", str(self.folder), "fcn32s"]
        return self.one.start(*command, cwd=self.project.folder, log=log), log

    def stop(self, job: tuple[subprocess.Popen[str], Path]) -> None:
        name = re.search(r"job (\S+): submitted", job[1].read_text())
        assert name is not None
        self.one.run(FCN, "cluster", "stop", name[1])
        assert job[0].wait() == 1


def wait_for(condition: Callable[[], object], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, log.read_text()
        assert not re.search(r"^error: |^job \S+: failed$", log.read_text(), re.MULTILINE), log.read_text()
        time.sleep(0.5)


def steps(log: Path) -> list[int]:
    return [int(step) for step in re.findall(rf"fcn32s  (\d+)/{STEPS}  loss", log.read_text())]


def resumed(log: Path) -> list[int]:
    return [int(step) for step in re.findall(r"fcn32s  resumed from step (\d+)", log.read_text())]


def wait_for_checkpoint(job: tuple[subprocess.Popen[str], Path]) -> None:
    begun = len(steps(job[1]))
    wait_for(lambda: len(steps(job[1])) > begun and steps(job[1])[-1] - steps(job[1])[begun] > EVERY, job[1])


def assert_plain(log: Path) -> None:
    """No stack, and no line of a worker twice."""
    text = log.read_text()
    assert "Traceback" not in text, text
    assert "StackTrace" not in text, text
    lines = [line for line in text.splitlines() if "  loss " in line]
    assert len(lines) == len(set(lines)), text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    project = Project(tmp_path_factory.mktemp("checkout"))
    profile = tiny(project.profile("sample"))
    profile["nets"]["fcn32s"]["iterations"] = STEPS
    profile["run"] = {"checkpoint_every": EVERY, "log_every": 10}
    project.use_profile("tiny", profile)
    with machines(tmp_path_factory.mktemp("machines")) as pair:
        yield Cluster(pair, project, tmp_path_factory.mktemp("shared"))


def test_a_wrong_token_is_refused_in_a_line(cluster, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    command = ["env", f"RAY_AUTH_TOKEN_PATH={wrong}", FCN, "cluster", "join", cluster.address]
    said = cluster.two.run(*command, fails=True)
    assert said.count("\n") == 1
    assert str(wrong) in said


def test_a_second_head_is_refused_in_a_line(cluster):
    said = cluster.one.run(FCN, "cluster", "head", fails=True)
    assert said.count("\n") == 1
    assert "6379" in said


def test_a_lost_node_is_named_with_what_the_run_waits_for_and_joined_again_it_goes_on(cluster):
    """This run is the first job too: its workers meet, though both machines' names lead to loopback."""
    job = cluster.submit()
    wait_for_checkpoint(job)
    cluster.two.run("pkill", "-9", "-f", "fcn cluster|ray")
    wait_for(lambda: "waiting for 1 more CPU" in job[1].read_text(), job[1])
    (line,) = [line for line in job[1].read_text().splitlines() if "waiting for 1 more CPU" in line]
    assert f"node {cluster.two.address} lost" in line
    assert f"fcn cluster join {cluster.address}" in line
    cluster.join()
    wait_for(lambda: resumed(job[1]), job[1])
    assert resumed(job[1])[0] % EVERY == 0
    cluster.stop(job)
    assert_plain(job[1])


def test_a_node_that_a_cut_of_the_network_took_joins_again_by_itself(cluster):
    job = cluster.submit()
    wait_for_checkpoint(job)
    cluster.two.run("ip", "link", "set", "eth0", "down")
    time.sleep(70)
    cluster.two.run("ip", "link", "set", "eth0", "up")
    cluster.wait_for_joins(2)
    begun = resumed(job[1])
    wait_for(lambda: len(resumed(job[1])) > len(begun), job[1])
    cluster.stop(job)
    assert_plain(job[1])
    assert_plain(cluster.node_log)
    assert cluster.node_log.read_text().count("\n") == 3  # joined, lost, joined


def test_after_the_loss_of_the_head_a_job_submitted_again_goes_on_from_its_checkpoint(cluster):
    job = cluster.submit()
    wait_for_checkpoint(job)
    number = cluster.node_log.read_text().count(f"a node of {cluster.address}\n")
    cluster.one.run("pkill", "-9", "-f", "fcn cluster head|ray|dvc|stages")
    assert job[0].wait() == 2
    told = job[1].read_text().splitlines()[-1]
    assert told.startswith("error: ")
    assert "fcn cluster head" in told
    assert "submit" in told
    cluster.start_head()
    cluster.wait_for_joins(number + 1)
    again = cluster.submit()
    wait_for(lambda: resumed(again[1]), again[1])
    assert resumed(again[1])[0] >= EVERY
    cluster.stop(again)
    for log in (job[1], again[1], cluster.node_log):
        assert_plain(log)
