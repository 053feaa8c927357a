"""Layers that make a backbone faster, with the same result. They have no effect while a model is exported."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class MemoryLayout(nn.Module):
    """Store a feature map in the memory format that the next convolutions run fastest in.

    cpu, gpu: the format on each device; None: unchanged. Most nets are fastest with the channels of a pixel side by
        side; VGG-16 is, on a CPU, only as long as it has few channels.
    """

    def __init__(self, *, cpu: torch.memory_format | None = None, gpu: torch.memory_format | None = None):
        super().__init__()
        self.cpu_format, self.gpu_format = cpu, gpu

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (N, C, H, W), with the same values."""
        memory_format = self.gpu_format if x.is_cuda else self.cpu_format
        if memory_format is None or torch.compiler.is_exporting():
            return x
        return x.contiguous(memory_format=memory_format)


class OneProduct(nn.Conv2d):
    """A convolution with a window nearly as large as its input, such as fc6, as a single matrix product on a CPU.

    Rearranging the input is cheap for such a layer. A convolution would rearrange its weights in every pass (411 MB of
    VGG-16's fc6), which costs as much as the convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of input: (N, C, H, W) to (N, O, h, w)."""
        if input.is_cuda or torch.compiler.is_exporting():
            return super().forward(input)
        window, border = self.kernel_size[0], self.padding[0]
        assert isinstance(border, int)
        columns = F.unfold(input, window, padding=border).transpose(1, 2)
        score = F.linear(columns, self.weight.flatten(1), self.bias)
        height = input.shape[2] + 2 * border - window + 1
        return score.transpose(1, 2).unflatten(2, (height, -1))


class Row(nn.Sequential):
    """Layers in a row, as nn.Sequential, whose batch norm becomes part of the convolutions where `run_row` can."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the last layer."""
        return run_row(self, input)


def run_row(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return the output of layers in a row.

    Batch norm with fixed statistics (in evaluation, or frozen in training) multiplies a convolution's output by a
    number a channel and adds another. The convolution's weights and bias can do both. This saves reading and writing
    the output once more, which costs a depthwise net about a third of its time, and its gradients stay the same.

    x: (N, C, H, W).
    """
    convolution = None
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = x if convolution is None else convolution(x)
            convolution = layer
        elif convolution is None:
            x = layer(x)
        elif isinstance(layer, _BatchNorm) and not layer.training and not torch.compiler.is_exporting():
            x = _normalised(convolution, layer, x)
            convolution = None
        else:
            x = layer(convolution(x))
            convolution = None
    return x if convolution is None else convolution(x)


def _normalised(convolution: nn.Conv2d, norm: _BatchNorm, x: Tensor) -> Tensor:
    """Return the batch norm of a convolution of x, by fixed statistics, in one pass over the output."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    return convolution._conv_forward(
        x, convolution.weight * factor[:, None, None, None], norm.bias - mean * factor
    )
