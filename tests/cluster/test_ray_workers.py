"""What is refused before Ray starts, and what runs beside a worker; cluster/test_cluster.py has clusters of several nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cluster import ray_workers
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("http://127.0.0.1:8265", "RAY_ADDRESS=http://127.0.0.1:8265 is a job server: submit a job to it"),
        ("127.0.0.1:9", "RAY_ADDRESS=127.0.0.1:9: nobody answers"),
        ("ray://127.0.0.1:9", "RAY_ADDRESS=ray://127.0.0.1:9: nobody answers"),
        ("no.such.host.invalid:6379", "RAY_ADDRESS=no.such.host.invalid:6379: nobody answers"),
    ],
)
def test_an_address_where_no_cluster_is_ends_in_one_sentence(monkeypatch, address: str, complaint: str):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(UserError, match=complaint):
        ray_workers._connect(1)


def test_gpus_this_machine_does_not_have_are_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 workers with a GPU each are asked for, this machine has 1"):
        ray_workers.run_workers(
            lambda *_: None,
            None,
            name="run",
            storage=tmp_path,
            num_workers=4,
            min_workers=2,
            use_gpu=True,
            cpus_per_worker=1,
            max_failures=0,
        )


LOOK_AROUND = """
import sys
from pathlib import Path

import psutil
import torch

from pipeline.cluster import ray_workers


def worker(folder, rank):
    large = torch.ones(2**24)
    memory = Path("/proc/self/smaps_rollup").read_text()
    names = [" ".join(process.cmdline()) for process in psutil.Process().parent().children()]
    (folder / "seen.txt").write_text(memory + "\\n".join(names))


folder = Path(sys.argv[1])
ray_workers.run_workers(
    worker, folder, name="run", storage=folder, num_workers=1, use_gpu=False, cpus_per_worker=1, max_failures=0
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_beside_a_worker_runs_no_helper_that_only_takes_time_and_its_tensors_have_huge_pages(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "THP_"))}
    subprocess.run(
        [sys.executable, "-c", LOOK_AROUND, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=True,
        timeout=300,
    )
    seen = (tmp_path / "seen.txt").read_text()
    assert "ray::RayTrainWorker" in seen
    for helper in ("PlacementGroupCleaner", "DatasetManager", "PreemptionWatcher"):
        assert helper not in seen
    (huge,) = (int(line.split()[1]) for line in seen.splitlines() if line.startswith("AnonHugePages:"))
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if setting.exists() and "[never]" not in setting.read_text():
        assert huge * 1024 > 4 * 2**24 / 2
