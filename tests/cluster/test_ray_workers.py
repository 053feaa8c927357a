"""Addresses that are refused before Ray starts, and a local run; test_cluster.py has clusters of several nodes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cluster import ray_workers
from pipeline.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.early


def run(storage: Path, *, num_workers: int, use_gpu: bool = False, min_workers: int | None = None) -> None:
    ray_workers.run_workers(
        lambda *_: None,
        None,
        name="run",
        storage=storage,
        num_workers=num_workers,
        use_gpu=use_gpu,
        cpus_per_worker=1,
        max_failures=0,
        min_workers=min_workers,
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "fcn cluster submit"),
        ("127.0.0.1:9", "no answer"),
        ("ray://127.0.0.1:9", "no answer"),
        ("no.such.host.invalid:6379", "no answer"),
    ],
)
def test_an_address_without_a_cluster_is_refused(monkeypatch, tmp_path, address: str, reason: str):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}.*{reason}"):
        run(tmp_path, num_workers=1)


def test_gpus_this_machine_does_not_have_are_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 .*has 1"):
        run(tmp_path, num_workers=4, min_workers=2, use_gpu=True)


def test_calls_that_fail_or_whose_process_dies_have_a_result_of_their_own_and_the_others_go_on(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(item: str) -> str:
        if item == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "fails":
            raise UserError("no good")
        return item

    items = ["dies", "fails", "a", "b"]
    with ray_workers.tasks(2, on_error=lambda item, error: f"{item}: {error}") as calls:
        results = sorted(calls(call, items))
    assert results[:2] == ["a", "b"]
    assert results[2].startswith("dies: ")
    assert results[3] == "fails: no good"


QUIET_RUN = """
import sys, time
from pathlib import Path

import torch

from pipeline.cluster import ray_workers


def flags_of(address):
    # The kernel's flags of the mapping that holds an address; hg: huge pages are requested
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(number, 16) for number in first.split("-"))
        elif first == "VmFlags:" and start <= address < end:
            return " ".join(rest)


def worker(folder, rank):
    large = torch.ones(2**24)
    (folder / f"{rank}.txt").write_text(flags_of(large.data_ptr()))
    print("a line of a worker", flush=True)
    time.sleep(3)  # Ray Train's helpers look around every second


folder = Path(sys.argv[1])
ray_workers.run_workers(
    worker, folder, name="run", storage=folder, num_workers=2, use_gpu=False, cpus_per_worker=1, max_failures=0
)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_shows_its_workers_lines_and_no_warnings_and_its_tensors_have_huge_pages(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "THP_"))}
    done = subprocess.run(
        [sys.executable, "-c", QUIET_RUN, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert "a line of a worker" in done.stdout + done.stderr
    assert "Failed to" not in done.stdout + done.stderr
    flags = [path.read_text().split() for path in tmp_path.glob("*.txt")]
    assert len(flags) == 2
    assert all("hg" in of_worker for of_worker in flags)


FULL_DISK = """
import os, sys
from pathlib import Path

from pipeline.cluster import ray_workers
from pipeline.errors import UserError


def worker(folder, rank):
    # Where the disk is full, the file that brings the message cannot be written either
    (folder / "run" / f".user-error.txt.{os.getpid()}.partial").mkdir()
    raise UserError("the disk is full:\\nmake room")


folder = Path(sys.argv[1])
try:
    ray_workers.run_workers(
        worker, folder, name="run", storage=folder, num_workers=1, use_gpu=False, cpus_per_worker=1, max_failures=1
    )
except UserError as error:
    (folder / "message").write_text(str(error))
"""


@pytest.mark.slow
def test_a_workers_message_arrives_though_its_file_cannot_be_written(tmp_path):
    subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, check=True, timeout=300)
    assert (tmp_path / "message").read_text() == "the disk is full:\nmake room"
