"""Where a worker runs, and how it adds up numbers with the others."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

# Large tensors in pages of 2 MiB (Linux): of a step on CPUs, up to a fifth went to the kernel's handing out small ones.
# torch reads it with a process's first tensor
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.distributed as dist
from torch import Tensor

# A worker that waits longer for the others is hanging, not slow (Ray's default: 1800)
COLLECTIVE_TIMEOUT_S = 300

T = TypeVar("T")


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

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives every worker the first one's values, in place. All must call it."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self.group)

    def gather(self, value: T) -> list[T]:
        """Every worker's value, which can be pickled, by rank. All must call it; it ends when all have."""
        found: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value, group=self.group)
        return found

    def agree(self, number: int) -> int:
        """The first worker's number, on every worker. All must call it; it ends when all have."""
        return int(self.total(torch.tensor(number if self.is_first else 0, device=self.device)))


ALONE = Place(0, 1, torch.device("cpu"))
