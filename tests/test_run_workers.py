"""What is refused before Ray starts, or waits, for nothing; test_cluster.py has real clusters."""

import pytest
import torch

from pipeline import cluster
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
        cluster._connect(1)


def test_gpus_this_machine_does_not_have_are_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 workers with a GPU each are asked for, this machine has 1"):
        cluster.run_workers(
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
