"""What "auto" stands for, on processors with and without bfloat16, alone and in groups of real processes."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from pipeline.distributed import precision
from pipeline.distributed.rank import SINGLE, Rank
from tests.gloo import run_in_processes

CPUINFO = Path("/proc/cpuinfo")
WITH, WITHOUT = {"avx512_bf16": True}, {"avx512_f": True, "avx512_bf16": False}


@pytest.mark.skipif(not CPUINFO.exists(), reason="reads /proc")
def test_a_processor_has_what_the_system_says_of_it():
    flags = set(CPUINFO.read_text().split())
    assert precision.has_bfloat16(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (WITH, "bfloat16"),
        ({"amx_tile": True, "amx_bf16": True}, "bfloat16"),
        (WITHOUT, "float32"),
        ({"architecture": "arm64", "bf16": True}, "float32"),
    ],
)
def test_auto_follows_the_processor_and_the_others_do_not(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.agreed("auto", SINGLE) == expected
    for stated in ("float32", "bfloat16"):
        assert precision.agreed(stated, SINGLE) == stated


def _agree(rank: Rank, folder: Path) -> None:
    for name, last in (("mixed", WITHOUT), ("equal", WITH)):
        with patch.object(torch.cpu, "get_capabilities", lambda last=last: last if rank.number else WITH):
            (folder / f"{name}{rank.number}").write_text(precision.agreed("auto", rank))


def test_workers_agree_on_what_all_of_them_have(tmp_path):
    run_in_processes(tmp_path, [2], _agree, tmp_path)
    assert {(tmp_path / f"mixed{rank}").read_text() for rank in (0, 1)} == {"float32"}
    assert {(tmp_path / f"equal{rank}").read_text() for rank in (0, 1)} == {"bfloat16"}
