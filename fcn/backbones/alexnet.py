"""AlexNet as the FCN trunk, in two forms: that of Caffe and the reference release, and torchvision's."""

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcn.backbones.features import Backbone, Channels, is_tight, scaled
from fcn.backbones.speed import MemoryLayout
from fcn.backbones.vgg import FC_CHANNELS, fully_connected
from fcn.pixels import PixelNormalization

FC6_KERNEL = 6
REFERENCE_PADDING = 100  # conv1 (reference voc-fcn-alexnet/net.py)
TIGHT_PADDING = 36  # 100 = 36 + 2 * 32: with fc6 padded by 2 the score grid lies on the same image positions


class Layout(NamedTuple):
    """The differences between the two forms.

    channels: of conv1 to conv5.
    groups: of conv2, conv4 and conv5.
    is_normalised: whether local response normalisation follows pool1 and pool2.
    """

    channels: tuple[int, int, int, int, int]
    groups: int
    is_normalised: bool


CAFFENET = Layout((96, 256, 384, 384, 256), groups=2, is_normalised=True)
ONE_WEIRD_TRICK = Layout((64, 192, 384, 256, 256), groups=1, is_normalised=False)  # arXiv 1404.5997


class _AlexNet(Backbone):
    """The common part of both forms; pool1 and pool2 lie at strides 8 and 16. See VGG16 for the options.

    padding: "tight" keeps the score grid; its 36 is the least padding with which a 1-pixel image leaves a cell.
    """

    layout: Layout

    def __init__(self, padding: str, width: float, dropout: float, pixels: str):
        first_padding, fc6_padding = (TIGHT_PADDING, 2) if is_tight(padding) else (REFERENCE_PADDING, 0)
        pool1, pool2, *_, pool5 = _widths(self.layout, width)
        fc7 = scaled(FC_CHANNELS, width)
        layers = (
            ("pixels", PixelNormalization(pixels)),
            ("nhwc", MemoryLayout(gpu=torch.channels_last)),
            *_convolutions(self.layout, width, first_padding),
            *fully_connected(pool5, fc7, FC6_KERNEL, fc6_padding, dropout),
        )
        super().__init__(layers, ("pool1", "pool2", "drop7"), Channels(pool1, pool2, fc7))


class CaffeNet(_AlexNet):
    """The trunk of the reference release's voc-fcn-alexnet, for Caffe's weights."""

    layout = CAFFENET

    def __init__(
        self,
        padding: str = "reference",
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        pixels: str = "caffe",
    ):
        super().__init__(padding, width, dropout, pixels)


class AlexNet(_AlexNet):
    """The trunk with the layers of torchvision's alexnet, for torchvision's weights."""

    layout = ONE_WEIRD_TRICK

    def __init__(
        self,
        padding: str = "reference",
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        pixels: str = "torchvision",
    ):
        super().__init__(padding, width, dropout, pixels)


class CaffeNetClassifier(nn.Module):
    """Caffe's bvlc_reference_caffenet, in two parts as torchvision's classifiers, which convolutionalize can cast.

    num_classes: the number of classes.
    width: share of the channels kept.
    dropout: probability after fc6 and fc7.
    """

    def __init__(self, num_classes: int = 1000, *, width: float = 1.0, dropout: float = 0.5):
        super().__init__()
        fc, pool5 = scaled(FC_CHANNELS, width), _widths(CAFFENET, width)[-1]
        self.features = nn.Sequential(OrderedDict(_convolutions(CAFFENET, width, first_padding=0)))
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(pool5 * FC6_KERNEL**2, fc),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(dropout),
                fc7=nn.Linear(fc, fc),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(dropout),
                fc8=nn.Linear(fc, num_classes),
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the class scores (N, num_classes) of a normalised crop (N, 3, 227, 227)."""
        return self.classifier(self.features(image).flatten(1))


def _widths(layout: Layout, width: float) -> list[int]:
    return [scaled(channels, width, layout.groups) for channels in layout.channels]


def _convolutions(layout: Layout, width: float, first_padding: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield conv1 to pool5."""
    one, two, three, four, five = _widths(layout, width)
    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)  # Caffe rounds up
    yield "conv1", nn.Conv2d(3, one, 11, 4, padding=first_padding)
    yield "relu1", nn.ReLU(inplace=True)
    yield "pool1", pool()
    if layout.is_normalised:
        yield "norm1", nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
    yield "conv2", nn.Conv2d(one, two, 5, padding=2, groups=layout.groups)
    yield "relu2", nn.ReLU(inplace=True)
    yield "pool2", pool()
    if layout.is_normalised:
        yield "norm2", nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
    yield "conv3", nn.Conv2d(two, three, 3, padding=1)
    yield "relu3", nn.ReLU(inplace=True)
    yield "conv4", nn.Conv2d(three, four, 3, padding=1, groups=layout.groups)
    yield "relu4", nn.ReLU(inplace=True)
    yield "conv5", nn.Conv2d(four, five, 3, padding=1, groups=layout.groups)
    yield "relu5", nn.ReLU(inplace=True)
    yield "pool5", pool()
