"""GoogLeNet as the FCN trunk, under torchvision's names, so that its weights load.

Published weights of the original are Caffe's. torchvision's net departs from the original (pytorch/vision issue 906):
the third branch has 3x3 windows in place of 5x5, pool4 2x2 in place of 3x3, and batch norm follows every convolution.
"""

from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.backbones.features import Backbone, Channels, refuse_tight, scaled
from fcn.backbones.speed import MemoryLayout, Row
from fcn.pixels import PixelNormalization

MIN_SIZE = 31  # pixels a side; fewer leave no cell after five layers of stride 2 without padding

# Channels of the branches: 1x1; 3x3 and its reduction; 5x5 and its reduction; pooling (Szegedy et al., table 1)
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(Backbone):
    """GoogLeNet up to inception5b, without the average pooling, as in the paper; 3b and 4e lie at strides 8 and 16.

    padding: "reference", the padding of its own layers.
    width: share of the channels kept.
    windows: "torchvision", or "paper" for the original's 5x5 branch and 3x3 pool4. The receptive field is then 715
        pixels; the 907 of CVPR Table 1 include the 7x7 average pooling after it.
    dropout: probability before the score layer.
    pixels: "inception" for torchvision's weights, which come from Google's net.
    """

    def __init__(
        self,
        padding: str = "reference",
        *,
        width: float = 1.0,
        windows: str = "torchvision",
        dropout: float = 0.2,
        pixels: str = "inception",
    ):
        refuse_tight(padding, "googlenet")
        if windows not in ("torchvision", "paper"):
            raise ValueError(f"unknown windows {windows!r}; known: torchvision, paper")
        out = {
            name: sum(scaled(c, width) for c in (one, three, five, pool))
            for name, (one, _, three, _, five, pool) in INCEPTIONS.items()
        }
        super().__init__(
            _layers(width, windows == "paper", dropout, pixels),
            ("inception3b", "inception4e", "dropout"),
            Channels(out["3b"], out["4e"], out["5b"]),
        )


class Inception(nn.Module):
    """Four branches side by side, their channels concatenated.

    in_channels: channels of the input.
    widths: a row of INCEPTIONS, scaled.
    has_5x5: whether the third branch has 5x5 windows, as in the paper, or 3x3, as in torchvision.
    """

    def __init__(self, in_channels: int, widths: list[int], has_5x5: bool):
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        third = (5, 2) if has_5x5 else (3, 1)
        self.branch1 = basic_conv(in_channels, one, 1)
        self.branch2 = Row(basic_conv(in_channels, reduce3, 1), basic_conv(reduce3, three, 3, 1))
        self.branch3 = Row(basic_conv(in_channels, reduce5, 1), basic_conv(reduce5, five, *third))
        self.branch4 = Row(nn.MaxPool2d(3, 1, padding=1), basic_conv(in_channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)

    def branches(self) -> list[list[nn.Module]]:
        return [[branch] for branch in self.children()]


class AtLeast(nn.Module):
    """Pad a normalised image with zeros on the right and below to at least `size` pixels a side."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return F.pad(image, (0, max(0, self.size - width), 0, max(0, self.size - height)))


def basic_conv(in_channels: int, out_channels: int, kernel: int, padding: int = 0, stride: int = 1) -> Row:
    """Return a convolution without bias, batch norm and ReLU."""
    return Row(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False),
            bn=nn.BatchNorm2d(out_channels, eps=1e-3),
            relu=nn.ReLU(inplace=True),
        )
    )


def _layers(width: float, is_papers: bool, dropout: float, pixels: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield all layers in order."""
    conv1, conv3 = scaled(64, width), scaled(192, width)
    yield "pixels", PixelNormalization(pixels)
    yield "at_least", AtLeast(MIN_SIZE)
    yield "nhwc", MemoryLayout(cpu=torch.channels_last, gpu=torch.channels_last)
    yield "conv1", basic_conv(3, conv1, 7, padding=3, stride=2)
    yield "maxpool1", nn.MaxPool2d(3, 2, ceil_mode=True)
    yield "conv2", basic_conv(conv1, conv1, 1)
    yield "conv3", basic_conv(conv1, conv3, 3, padding=1)
    yield "maxpool2", nn.MaxPool2d(3, 2, ceil_mode=True)
    before = conv3
    for name, channels in INCEPTIONS.items():
        if name == "4a":
            yield "maxpool3", nn.MaxPool2d(3, 2, ceil_mode=True)
        if name == "5a":
            yield "maxpool4", nn.MaxPool2d(3 if is_papers else 2, 2, ceil_mode=True)
        widths = [scaled(c, width) for c in channels]
        yield f"inception{name}", Inception(before, widths, has_5x5=is_papers)
        before = widths[0] + widths[2] + widths[4] + widths[5]
    yield "dropout", nn.Dropout(dropout)
