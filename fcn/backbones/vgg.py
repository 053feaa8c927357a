"""VGG-16 as the FCN trunk: thirteen convolutions, five poolings, and fc6/fc7 as convolutions."""

from collections.abc import Iterator
from itertools import chain

from torch import nn

from fcn.backbones.features import Backbone, Channels, fully_connected, is_tight, scaled
from fcn.pixels import PixelNormalization

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions before each pooling
FC_CHANNELS = 4096
REFERENCE_PADDING = 100  # conv1_1; lets a 1-pixel image survive five poolings and fc6 (reference net.py)
TIGHT_PADDING = 4  # 100 = 4 + 3 * 32: with fc6 padded by 3 the score grid lies on the same image positions


class VGG16(Backbone):
    """The trunk of FCN-32s/16s/8s. Layers carry the reference's names.

    padding: "reference" (conv1_1 by 100, fc6 by 0) or "tight" (conv1_1 by 4, fc6 kept the size of its input):
        same score grid, other context near the border, about half the arithmetic at 500x375.
    width: share of the channels kept, for small machines.   batch_norm: after every trunk convolution.
    fc6_kernel: odd; 7 in the paper.   pixels: "caffe" or "torchvision", whatever the weights were trained with.
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
        layers = chain(
            [("pixels", PixelNormalization(pixels))],
            _trunk(width, batch_norm, first_padding),
            fully_connected(pool5, fc7, fc6_kernel, fc6_padding, dropout),
        )
        super().__init__(layers, ("pool3", "pool4", "drop7"), Channels(pool3, pool4, fc7), "pool1")


def _trunk(width: float, batch_norm: bool, first_padding: int) -> Iterator[tuple[str, nn.Module]]:
    """conv1_1 ... pool5, in order."""
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
