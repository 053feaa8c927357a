"""Batch norm while training on several workers: statistics of one worker, of all, or frozen."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcn.model import FCN
from pipeline.distributed.rank import Rank


def across_workers(model: FCN, batch_norm: str, rank: Rank) -> FCN:
    """Return the net with synchronised batch norm if `batch_norm` is "sync"; layer names stay.

    torch has it for GPUs only; a profile that sets it without GPUs is refused. A fixed trunk keeps its statistics.
    """
    if batch_norm == "sync" and rank.world_size > 1 and not model.fixed_trunk:
        nn.SyncBatchNorm.convert_sync_batchnorm(model, rank.group)  # replaces layers in place
    return model


def set_training(model: nn.Module, batch_norm: str) -> None:
    """Set training mode. With "frozen", batch norm keeps its statistics and learns only scale and shift."""
    model.train()
    if batch_norm == "frozen":
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()
