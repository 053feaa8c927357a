"""VGG-16 as the FCN trunk: thirteen convolutions, five poolings, and fc6 and fc7 as convolutions."""

from collections.abc import Iterator

import torch
from torch import nn

from fcn.backbones.features import Backbone, Channels, is_tight, scaled
from fcn.backbones.speed import MemoryLayout, OneProduct
from fcn.pixels import PixelNormalization

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions before each pooling
FC_CHANNELS = 4096
REFERENCE_PADDING = 100  # conv1_1; lets a 1-pixel image survive five poolings and fc6 (reference net.py)
TIGHT_PADDING = 4  # 100 = 4 + 3 * 32: with fc6 padded by 3 the score grid lies on the same image positions


class VGG16(Backbone):
    """The trunk of FCN-32s, 16s and 8s; layers have the reference's names.

    padding: "reference" pads conv1_1 by 100 and fc6 by 0. "tight" pads conv1_1 by 4, and fc6 so that it keeps the size
        of its input: the same score grid, other context near the border, about half the arithmetic at 500x375.
    width: share of the channels kept, for small machines.
    batch_norm: whether batch norm follows every convolution up to pool5.
    fc6_kernel: odd; 7 in the paper.
    dropout: probability after fc6 and fc7.
    pixels: the convention the weights were trained with, a key of fcn.pixels.CONVENTIONS.
    """

    def __init__(
        self,
        padding: str = "reference",
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        fc6_kernel: int = 7,
        dropout: float = 0.5,
        pixels: str = "caffe",
    ):
        if fc6_kernel % 2 == 0:
            raise ValueError(f"fc6_kernel must be odd to be centred on its cell, got {fc6_kernel}")
        first_padding, fc6_padding = (
            (TIGHT_PADDING, fc6_kernel // 2) if is_tight(padding) else (REFERENCE_PADDING, 0)
        )
        pool3, pool4, pool5 = (scaled(channels, width) for channels, _ in BLOCKS[2:])
        fc7 = scaled(FC_CHANNELS, width)
        layers = (
            ("pixels", PixelNormalization(pixels)),
            *_convolutions(width, batch_norm, first_padding),
            *fully_connected(pool5, fc7, fc6_kernel, fc6_padding, dropout),
        )
        super().__init__(layers, ("pool3", "pool4", "drop7"), Channels(pool3, pool4, fc7))


def fully_connected(
    in_channels: int, channels: int, kernel: int, padding: int, dropout: float
) -> Iterator[tuple[str, nn.Module]]:
    """Yield fc6 to drop7 of VGG-16 and AlexNet, as convolutions."""
    yield "fc6", OneProduct(in_channels, channels, kernel, padding=padding)
    yield "relu6", nn.ReLU(inplace=True)
    yield "drop6", nn.Dropout(dropout)
    yield "fc7", nn.Conv2d(channels, channels, 1)
    yield "relu7", nn.ReLU(inplace=True)
    yield "drop7", nn.Dropout(dropout)


def _convolutions(width: float, batch_norm: bool, first_padding: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield conv1_1 to pool5."""
    yield "nhwc", MemoryLayout(cpu=torch.channels_last, gpu=torch.channels_last)
    before = 3
    for block, (channels, num_convs) in enumerate(BLOCKS, start=1):
        after = scaled(channels, width)
        for i in range(1, num_convs + 1):
            padding = first_padding if (block, i) == (1, 1) else 1
            yield f"conv{block}_{i}", nn.Conv2d(before, after, 3, padding=padding)
            if batch_norm:
                yield f"bn{block}_{i}", nn.BatchNorm2d(after)
            yield f"relu{block}_{i}", nn.ReLU(inplace=True)
            before = after
        # Caffe pools round up; rounding down leaves FCN-32s too short for 372 of the heights 1..999
        yield f"pool{block}", nn.MaxPool2d(2, 2, ceil_mode=True)
        if block == 1:
            yield "nchw", MemoryLayout(cpu=torch.contiguous_format)
