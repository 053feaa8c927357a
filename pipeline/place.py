"""Where a worker runs, and how it adds up numbers with the others."""

import ctypes
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

MALLOC_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
LARGE_BLOCK = 4 * 2**20  # bytes; glibc's own limit grows to 32 MiB with what is freed


def return_large_blocks() -> None:
    """Has this process give large tensors' memory back when they go (Linux): else holes are kept between later ones."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(MALLOC_MMAP_THRESHOLD, LARGE_BLOCK)


@dataclass(frozen=True)
class Place:
    """Rank 0..world-1 among the workers of a torch process group, on its device.

    group: theirs, if it is not all processes.
    """

    rank: int
    world: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of every worker's value, on every worker. All must call it."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value, group=self.group)
        return value

    def agree(self, number: int) -> int:
        """The first worker's number, on every worker. All must call it; it ends when all have."""
        return int(self.total(torch.tensor(number if self.is_first else 0, device=self.device)))


ALONE = Place(0, 1, torch.device("cpu"))
