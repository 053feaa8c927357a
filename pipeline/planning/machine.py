"""The machine that a plan is made for."""

from typing import NamedTuple

import torch

from pipeline.distributed.precision import has_bfloat16
from pipeline.monitoring.machine import available_memory, num_cores


class Machine(NamedTuple):
    """The resources of this machine.

    num_cores: CPU cores that this process may use.
    memory: bytes that can be allocated now, within the limit of a container; infinity if unknown.
    num_gpus: CUDA devices.
    gpu_name: of the first; "" without one.
    gpu_memory: bytes of the smallest device; 0 without one.
    has_bfloat16: whether the CPU multiplies bfloat16 numbers.
    """

    num_cores: int
    memory: float
    num_gpus: int = 0
    gpu_name: str = ""
    gpu_memory: int = 0
    has_bfloat16: bool = False

    def __str__(self) -> str:
        memory = f", {self.memory / 1e9:.0f} GB of free memory" if self.memory < float("inf") else ""
        gpus = (
            f"{self.num_gpus} x {self.gpu_name} ({self.gpu_memory / 1e9:.0f} GB), " if self.num_gpus else ""
        )
        return f"{gpus}{self.num_cores} CPU cores{memory}"


def read() -> Machine:
    """Return the resources of this machine."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Machine(
        num_cores(),
        available_memory(),
        len(gpus),
        gpus[0].name if gpus else "",
        min((gpu.total_memory for gpu in gpus), default=0),
        has_bfloat16(torch.device("cpu")),
    )
