"""ResNet-50 (He et al. 2016) as the FCN trunk, under torchvision's names, so that its weights load."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fcn.backbones.features import Backbone, Channels, refuse_tight, scaled
from fcn.backbones.speed import MemoryLayout, Row, run_row
from fcn.pixels import PixelNormalization

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner channels and blocks of layer1..layer4
EXPANSION = 4  # output channels of a block, in multiples of its inner channels


class ResNet50(Backbone):
    """ResNet-50 up to layer4, without the average pooling; layer2 and layer3 lie at strides 8 and 16.

    padding: "reference", the padding of its own layers.
    width: share of the channels kept.
    dropout: probability before the score layer; the ImageNet classifier has none.
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
        refuse_tight(padding, "resnet50")
        channels = Channels(*(EXPANSION * scaled(inner, width) for inner, _ in STAGES[1:]))
        super().__init__(_layers(width, dropout, pixels), ("layer2", "layer3", "dropout"), channels)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 one has the stride, as in torchvision's "v1.5"."""

    def __init__(self, in_channels: int, inner: int, stride: int):
        super().__init__()
        out_channels = EXPANSION * inner
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = Row()
        if stride != 1 or in_channels != out_channels:
            self.downsample.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.conv1, self.bn1, self.relu, self.conv2, self.bn2, self.relu, self.conv3, self.bn3)
        return self.relu(run_row(layers, x) + self.downsample(x))

    def branches(self) -> list[list[nn.Module]]:
        return [[self.conv1, self.conv2, self.conv3], [self.downsample]]


def _layers(width: float, dropout: float, pixels: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield all layers in order."""
    before = scaled(STAGES[0][0], width)
    yield "pixels", PixelNormalization(pixels)
    yield "nhwc", MemoryLayout(cpu=torch.channels_last, gpu=torch.channels_last)
    yield "conv1", nn.Conv2d(3, before, 7, 2, padding=3, bias=False)
    yield "bn1", nn.BatchNorm2d(before)
    yield "relu", nn.ReLU(inplace=True)
    yield "maxpool", nn.MaxPool2d(3, 2, padding=1)
    for number, (channels, num_blocks) in enumerate(STAGES, start=1):
        inner, blocks = scaled(channels, width), nn.Sequential()
        for i in range(num_blocks):
            blocks.append(Bottleneck(before, inner, stride=2 if i == 0 and number > 1 else 1))
            before = EXPANSION * inner
        yield f"layer{number}", blocks
    yield "dropout", nn.Dropout(dropout)
