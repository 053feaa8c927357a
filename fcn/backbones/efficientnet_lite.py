"""EfficientNet-Lite 0, 1 and 2 (Google, 2020) as the FCN trunk: EfficientNet (Tan & Le 2019) for small processors.

EfficientNet without squeeze-and-excitation, with ReLU6 for swish, and with the same first and last layers at all sizes.
"""

from collections.abc import Iterator
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.backbones.features import Backbone, Channels, refuse_tight
from fcn.backbones.speed import MemoryLayout, Row
from fcn.pixels import PixelNormalization

# Width and depth: factors of the channels and of the number of blocks of each stage
SIZES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
# Kernel, stride, expansion, output channels and number of blocks of each stage (Tan & Le, table 1)
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
FIRST, LAST = 32, 1280  # channels of the first and the last layer
TAPS = ("stage3", "stage5", "dropout")  # the last layers at strides 8, 16 and 32
MULTIPLE = 8  # that channels are rounded to
EPS, MOMENTUM = 1e-3, 0.01  # of batch norm; TensorFlow's momentum of 0.99


class EfficientNetLite(Backbone):
    """EfficientNet-Lite without its average pooling and classes.

    size: a key of SIZES.
    padding: "reference", the padding of its own layers: TensorFlow's SAME.
    width: factor of all channels, beside that of the size; for experiments without published weights.
    dropout: probability before the score layer.
    pixels: the convention the weights were trained with, a key of fcn.pixels.CONVENTIONS.
    """

    def __init__(
        self,
        size: str,
        padding: str = "reference",
        *,
        width: float = 1.0,
        dropout: float = 0.0,
        pixels: str = "efficientnet_lite",
    ):
        refuse_tight(padding, size)
        inner = SIZES[size][0] * width
        channels = Channels(
            _rounded(STAGES[2][3] * inner), _rounded(STAGES[4][3] * inner), _rounded(LAST * width)
        )
        super().__init__(_layers(size, width, dropout, pixels), TAPS, channels)


class SameConv2d(nn.Conv2d):
    """A convolution of stride 2 with the padding that TensorFlow's SAME has on an even side.

    SAME pads an even side by (kernel - 2) // 2 cells before and by kernel // 2 cells behind. On an odd side it would
    pad one cell more before; then cells would lie elsewhere for every size of image. Here they never move.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, groups: int = 1):
        before = (kernel - 2) // 2
        super().__init__(in_channels, out_channels, kernel, 2, padding=before, groups=groups, bias=False)
        behind = kernel - 1 - before  # enough for an odd side; on an even side the last column is not used
        self.border = (before, behind, before, behind)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of input: (N, C, H, W) to (N, O, ceil(H / 2), ceil(W / 2))."""
        return F.conv2d(F.pad(input, self.border), weight, bias, self.stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; beside a shortcut where the shape stays (MobileNetV2)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = expansion * in_channels
        self.layers = Row()
        if expansion > 1:
            self.layers.add_module("expand_conv", nn.Conv2d(in_channels, inner, 1, bias=False))
            self.layers.add_module("bn0", _norm(inner))
            self.layers.add_module("relu0", nn.ReLU6())
        self.layers.add_module("depthwise_conv", _conv(inner, inner, kernel, stride, groups=inner))
        self.layers.add_module("bn1", _norm(inner))
        self.layers.add_module("relu1", nn.ReLU6())
        self.layers.add_module("project_conv", nn.Conv2d(inner, out_channels, 1, bias=False))
        self.layers.add_module("bn2", _norm(out_channels))
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return out + x if self.has_shortcut else out

    def branches(self) -> list[list[nn.Module]]:
        return [[*self.layers], []] if self.has_shortcut else [[*self.layers]]


def num_blocks(size: str) -> list[int]:
    """Return the number of blocks of each stage; those of the first and the last stage stay."""
    _, depth = SIZES[size]
    inner = range(1, len(STAGES) - 1)
    return [ceil(stage[-1] * depth) if i in inner else stage[-1] for i, stage in enumerate(STAGES)]


def _layers(size: str, width: float, dropout: float, pixels: str) -> Iterator[tuple[str, nn.Module]]:
    first, last, inner = _rounded(FIRST * width), _rounded(LAST * width), SIZES[size][0] * width
    yield "pixels", PixelNormalization(pixels)
    yield "nhwc", MemoryLayout(cpu=torch.channels_last, gpu=torch.channels_last)
    yield "stem", Row(SameConv2d(3, first, 3), _norm(first), nn.ReLU6())
    before = first
    for number, (stage, repeats) in enumerate(zip(STAGES, num_blocks(size), strict=True), start=1):
        kernel, stride, expansion, channels, _ = stage
        after, blocks = _rounded(channels * inner), Row()
        for i in range(repeats):
            blocks.append(InvertedResidual(before, after, kernel, stride if i == 0 else 1, expansion))
            before = after
        yield f"stage{number}", blocks
    yield "head", Row(nn.Conv2d(before, last, 1, bias=False), _norm(last), nn.ReLU6())
    yield "dropout", nn.Dropout(dropout)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    if stride == 2:
        return SameConv2d(in_channels, out_channels, kernel, groups=groups)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


def _rounded(channels: float) -> int:
    """Return a multiple of MULTIPLE near `channels`, not below nine tenths of it (the published code's rule)."""
    rounded = max(MULTIPLE, int(channels + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return rounded if rounded >= 0.9 * channels else rounded + MULTIPLE
