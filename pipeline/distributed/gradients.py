"""Gradient averaging across workers, by torch's DistributedDataParallel."""

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed.rank import Rank


def average_gradients(model: nn.Module, rank: Rank, *, compression: str, bucket_mb: int) -> nn.Module:
    """Return a model whose backward pass leaves the workers' mean gradient on each; `model` itself for one worker.

    Each worker keeps its own running statistics of batch norm. Training does not read them; `Rank.broadcast` gives all
    workers those of rank 0 before they are used.

    compression: "none", or "bf16" to send gradients rounded to bfloat16.
    bucket_mb: megabytes of gradients that are sent at a time.
    """
    if rank.world_size == 1:
        return model
    # Two stride conventions describe the same bytes of a depthwise kernel. Other layouts are copied.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    parallel = DistributedDataParallel(
        model,
        process_group=rank.group,
        bucket_cap_mb=bucket_mb,
        gradient_as_bucket_view=True,
        # Every parameter is used. But without this, torch sends the first step's gradients in one bucket and rearranges
        # them for the second. Gloo's sums of 3 or more workers depend on the place in a bucket, so a resumed run's
        # first step would differ from an undisturbed run's
        find_unused_parameters=True,
    )
    parallel.broadcast_buffers = (
        False  # the constructor's argument has another name in torch 2.11 than in 2.15
    )
    if compression == "bf16":
        parallel.register_comm_hook(rank.group, bf16_compress_hook)
    return parallel


def synchronised(model: nn.Module, *, is_last: bool) -> AbstractContextManager[object]:
    """Return a context in which a backward pass averages gradients, only in the last inner step of each step."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()
