"""MobileNetV1 (Howard et al. 2017) as the FCN trunk, in three stages; it trains on a laptop."""

from collections.abc import Iterator

import torch
from torch import nn

from fcn.backbones.features import Backbone, Channels, refuse_tight, scaled
from fcn.backbones.speed import MemoryLayout, Row
from fcn.pixels import PixelNormalization

# Output channels and stride of each depthwise-separable block, after a 3x3 convolution of stride 2 to FIRST
FIRST = 32
STAGES = (
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)
SLOPE = 0.1  # of LeakyReLU, which the published weights of width 0.25 were trained with


class MobileNetV1(Backbone):
    """MobileNetV1 without its average pooling; the three stages end at strides 8, 16 and 32.

    padding: "reference", the padding of its own layers.
    width: Howard et al.'s multiplier of the channels; with 0.25 the trunk has 0.2 million parameters.
    dropout: probability before the score layer.
    pixels: the convention the weights were trained with, a key of fcn.pixels.CONVENTIONS.
    """

    def __init__(
        self,
        padding: str = "reference",
        *,
        width: float = 1.0,
        dropout: float = 0.0,
        pixels: str = "torchvision",
    ):
        refuse_tight(padding, "mobilenet_v1")
        channels = Channels(*(scaled(blocks[-1][0], width) for blocks in STAGES))
        super().__init__(_layers(width, dropout, pixels), ("stage1", "stage2", "dropout"), channels)


def separable(in_channels: int, out_channels: int, stride: int) -> Row:
    """Return a 3x3 convolution of each channel (depthwise) and a 1x1 convolution over all channels (pointwise)."""
    return Row(
        nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


def _layers(width: float, dropout: float, pixels: str) -> Iterator[tuple[str, nn.Module]]:
    before = scaled(FIRST, width)
    first = Row(
        nn.Conv2d(3, before, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(before),
        nn.LeakyReLU(SLOPE, inplace=True),
    )
    yield "pixels", PixelNormalization(pixels)
    yield "nhwc", MemoryLayout(cpu=torch.channels_last, gpu=torch.channels_last)
    for number, blocks in enumerate(STAGES, start=1):
        stage = Row(first) if number == 1 else Row()
        for channels, stride in blocks:
            after = scaled(channels, width)
            stage.append(separable(before, after, stride))
            before = after
        yield f"stage{number}", stage
    yield "dropout", nn.Dropout(dropout)
