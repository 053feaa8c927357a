"""How workers average their gradients while the backward pass still runs; whole, or with fewer bytes on the wire."""

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed.rank import Place
from pipeline.distributed.shared_memory import SharedMemory, shared_memory

FIRST_POWERSGD_STEP = 2  # DDP arranges its buckets anew after a process's first step


def exchanging(
    model: nn.Module,
    place: Place,
    *,
    start: int,
    compression: str,
    bucket_mb: int,
    powersgd_rank: int,
    powersgd_after: int,
) -> nn.Module:
    """The model whose backward pass leaves the workers' mean gradient on each; itself, where there is one worker.

    start: the step the run goes on from.   The rest: see config.training.Exchange. "bf16" rounds what is sent;
    "powersgd" sends two thin matrices for each weight and keeps what they lack for the next step, in memory alone: a
    resumed run begins without it. (Vogels, Karimireddy, Jaggi, NeurIPS 2019) "none" goes through memory where the
    workers are CPUs of one machine.

    Batch norm's running statistics stay each worker's own: training does not read them. Place.share gives the first's.
    """
    if place.world == 1:
        return model
    # A depthwise kernel's strides have two names for the same bytes, others are copied: nothing for a user to do
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    trained = DistributedDataParallel(
        model, process_group=place.group, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True
    )
    trained.broadcast_buffers = False  # as an argument, torch 2.11 and 2.15 call it differently
    if compression == "bf16":
        trained.register_comm_hook(place.group, bf16_compress_hook)
    elif compression == "powersgd":
        state = PowerSGDState(
            place.group,
            matrix_approximation_rank=powersgd_rank,
            start_powerSGD_iter=max(powersgd_after - start, FIRST_POWERSGD_STEP),
        )
        trained.register_comm_hook(state, powerSGD_hook)
    elif memory := shared_memory(place):
        trained.register_comm_hook(memory, _average)
    return trained


def _average(
    memory: SharedMemory,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]  # torch's documents call it that
) -> torch.futures.Future[Tensor]:
    """At once, not beside the backward pass, which wants the same cores."""
    memory.average(bucket.buffer())
    averaged: torch.futures.Future[Tensor] = torch.futures.Future()
    averaged.set_result(bucket.buffer())
    return averaged
