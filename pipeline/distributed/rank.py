"""One worker's rank in its process group, and the collectives that training needs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

# Linux: large tensors in 2 MiB pages, read at torch's first tensor. Page faults took up to a fifth of a CPU step.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.distributed as dist
from torch import Tensor

# A worker that waits longer than this for the others hangs (Ray's default: 1800 s).
COLLECTIVE_TIMEOUT_S = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """A worker in a torch process group. Every worker of the group must call a collective, in the same order.

    number: 0 .. world_size - 1.
    world_size: workers in the group.
    device: the worker's own.
    group: the process group; None for the default group of all processes.
    """

    number: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.number == 0

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum of every worker's value, on every worker."""
        if self.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value, group=self.group)
        return value

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self.group)

    def gather(self, value: T) -> list[T]:
        """Return every worker's value by rank, on every worker. The values are pickled."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, number: int) -> int:
        """Return rank 0's number on every worker. This is a barrier, too."""
        return int(self.all_reduce(torch.tensor(number if self.is_first else 0, device=self.device)))


SINGLE = Rank(0, 1, torch.device("cpu"))
