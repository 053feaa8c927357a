"""The base of every backbone: layers in a row, three of which give features to the score layers."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

from torch import Tensor, nn

from fcn.backbones.speed import run_row
from fcn.geometry import IMAGE, CoordMap

PADDINGS = ("reference", "tight")
NamedLayers = Iterable[tuple[str, nn.Module]]


class Features(NamedTuple):
    """Feature maps at strides 8, 16 and 32, (N, C, h, w) float, under VGG-16's names for them."""

    pool3: Tensor
    pool4: Tensor
    fc7: Tensor


class Channels(NamedTuple):
    """The number of channels of each feature map."""

    pool3: int
    pool4: int
    fc7: int


class Geometry(NamedTuple):
    """The positions of each feature map's cells in the image."""

    pool3: CoordMap
    pool4: CoordMap
    fc7: CoordMap


class Backbone(nn.Module):
    """A classifier's trunk: its children run in order, under the names that their published weights have.

    layers: (name, layer) of each child, the pixel normalisation first; their weights are initialised here.
    taps: names of the children whose outputs are the features at strides 8, 16 and 32. The third tap must be the last
        child.
    channels: channels of these features.
    """

    def __init__(self, layers: NamedLayers, taps: tuple[str, str, str], channels: Channels):
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)
        initialise(self)
        self.taps, self.channels = taps, channels
        self.geometry = Geometry(*(IMAGE.through(self._until(name)) for name in taps))

    def forward(self, image: Tensor) -> Features:
        """Return the features of an image.

        image: (N, 3, H, W) RGB, uint8 or float in 0..255, any H, W >= 1.
        """
        features, row, x = [], [], image
        for name, layer in self.named_children():
            row.append(layer)
            if name in self.taps:
                x = run_row(row, x)
                features.append(x)
                row = []
        return Features(*features)

    def _until(self, last: str) -> Iterator[nn.Module]:
        yield from (layer for _, layer in takewhile(lambda child: child[0] != last, self.named_children()))
        yield self.get_submodule(last)


def initialise(net: nn.Module) -> None:
    """Draw the weights of all convolutions by He et al.'s fan-out rule; pretrained weights overwrite them."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Return the share `width` of the channels, rounded to a multiple, at least one multiple."""
    return multiple * max(1, round(channels * width / multiple))


def is_tight(padding: str) -> bool:
    """Return whether padding is "tight"; raise ValueError unless it is one of PADDINGS."""
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; known: {', '.join(PADDINGS)}")
    return padding == "tight"


def refuse_tight(padding: str, backbone: str) -> None:
    """Raise ValueError unless padding is "reference": for nets whose layers each have their own padding."""
    if is_tight(padding):
        raise ValueError(f"{backbone} has only the padding of its own layers, 'reference'; got {padding!r}")
