"""Layers that make a backbone faster, with the same result. They have no effect while a model is exported."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryLayout(nn.Module):
    """Store a feature map in the memory format that the next convolutions run fastest in.

    cpu, gpu: the format on each device; None: unchanged. A GPU is fastest with the channels of a pixel side by side,
        a CPU only as long as there are few channels.
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
