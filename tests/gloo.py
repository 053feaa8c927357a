"""Real processes joined by gloo, to train in as Ray's workers do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.distributed.rank import Rank


def run_in_processes(folder: Path, worlds: list[int], work: Callable[..., None], *arguments: Any) -> None:
    """work(rank, *arguments) in groups of so many processes, one group after the other.

    One set of processes serves all groups, as starting one takes seconds.
    """
    torch.multiprocessing.spawn(_process, (folder, worlds, work, arguments), nprocs=max(worlds))


def _process(rank: int, folder: Path, worlds: list[int], work: Callable[..., None], arguments: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for number, world in enumerate(worlds):
        if rank < world:
            meeting = f"file://{folder / f'meeting{number}'}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
            work(Rank(rank, world, torch.device("cpu")), *arguments)
            dist.destroy_process_group()
