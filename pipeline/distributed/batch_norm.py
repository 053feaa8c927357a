"""Batch norm in training on several workers: each by its own images, all by the images of all, or by none."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcn.model import FCN
from pipeline.distributed.rank import Place


def across_workers(model: FCN, batch_norm: str, place: Place) -> FCN:
    """The net with its batch norm as train.batch_norm says: "local", "sync" or "frozen". Its weights keep their names.

    A fixed trunk's statistics stay as they are in any case.
    """
    if batch_norm != "sync" or place.world == 1 or model.fixed_trunk:
        return model
    if place.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model, place.group)  # replaces layers in place
        return model
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                synced = SyncedBatchNorm(layer.num_features, layer.eps, layer.momentum)
                synced.group = place.group
                synced.load_state_dict(layer.state_dict())
                synced.requires_grad_(layer.weight.requires_grad)
                setattr(module, name, synced)
    return model


def set_training(model: nn.Module, batch_norm: str) -> None:
    """Training mode; frozen batch norm keeps the statistics it has, and learns scale and shift."""
    model.train()
    if batch_norm == "frozen":
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all workers. torch has the same for a GPU alone.

    group: theirs, as Place has it.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        if not self.training:
            return super().forward(input)
        pixels = torch.tensor(float(input.numel() // self.num_features), dtype=input.dtype)
        count = _Total.apply(pixels, self.group)
        mean = _Total.apply(input.sum((0, 2, 3)), self.group) / count
        centred = input - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3)), self.group) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight / (variance + self.eps).sqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


class _Total(torch.autograd.Function):
    """The sum over workers, whose gradient is the sum of the workers' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
