"""What every backbone is: layers in a row, three of which are handed to the score layers."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.geometry import IMAGE, CoordMap

PADDINGS = ("reference", "tight")
NamedLayers = Iterable[tuple[str, nn.Module]]


class Features(NamedTuple):
    """Maps at strides 8, 16 and 32, named as VGG-16 has them: the paper's figure is drawn from that net."""

    pool3: Tensor
    pool4: Tensor
    fc7: Tensor


class Channels(NamedTuple):
    pool3: int
    pool4: int
    fc7: int


class Geometry(NamedTuple):
    pool3: CoordMap
    pool4: CoordMap
    fc7: CoordMap


class Backbone(nn.Module):
    """A classifier's trunk: image -> Features. Its children run in order, under the names its weights have.

    taps: the children that give the features at strides 8, 16 and 32; the last of them is the last child.
    channels, geometry: how wide these features are, and where their cells lie.
    nhwc_until: a child; up to it a CPU keeps the channels of a pixel together, which few channels gain by. A GPU always
        does.
    """

    def __init__(
        self,
        layers: NamedLayers,
        taps: tuple[str, str, str],
        channels: Channels,
        nhwc_until: str | None = None,
    ):
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)
        initialise(self)
        self.taps, self.channels, self.nhwc_until = taps, channels, nhwc_until
        self.geometry = Geometry(*(IMAGE.through(self._until(name)) for name in taps))

    def forward(self, image: Tensor) -> Features:
        """image: (N, 3, H, W) RGB, uint8 or float in 0..255; any H, W >= 1."""
        features, x = [], image
        exporting = torch.compiler.is_exporting()  # the layout is then the business of whoever runs the graph
        if not exporting and (image.is_cuda or self.nhwc_until):
            x = x.contiguous(memory_format=torch.channels_last)
        for name, layer in self.named_children():
            x = layer(x)
            if name == self.nhwc_until and not (exporting or x.is_cuda):
                x = x.contiguous()
            if name in self.taps:
                features.append(x)
        return Features(*features)

    def _until(self, last: str) -> Iterator[nn.Module]:
        yield from (layer for _, layer in takewhile(lambda child: child[0] != last, self.named_children()))
        yield self.get_submodule(last)


class OneProduct(nn.Conv2d):
    """A convolution whose window is nearly its input, such as fc6, as a single matrix product on a CPU.

    Rearranging the input costs little there, and rearranging the weights for a convolution (411 MB of VGG-16's fc6),
    each time anew, as much as the convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda or torch.compiler.is_exporting():
            return super().forward(input)
        window, border = self.kernel_size[0], self.padding[0]
        assert isinstance(border, int)
        columns = F.unfold(input, window, padding=border).transpose(1, 2)
        score = F.linear(columns, self.weight.flatten(1), self.bias)
        height = input.shape[2] + 2 * border - window + 1
        return score.transpose(1, 2).unflatten(2, (height, -1))


def fully_connected(
    in_channels: int, channels: int, kernel: int, padding: int, dropout: float
) -> Iterator[tuple[str, nn.Module]]:
    """fc6 and fc7 of VGG-16 and AlexNet as convolutions."""
    yield "fc6", OneProduct(in_channels, channels, kernel, padding=padding)
    yield "relu6", nn.ReLU(inplace=True)
    yield "drop6", nn.Dropout(dropout)
    yield "fc7", nn.Conv2d(channels, channels, 1)
    yield "relu7", nn.ReLU(inplace=True)
    yield "drop7", nn.Dropout(dropout)


def initialise(net: nn.Module) -> None:
    """He et al.'s fan-out rule, for training from scratch; pretrained weights overwrite it."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """The share `width` of the channels, rounded to a multiple, at least one."""
    return multiple * max(1, round(channels * width / multiple))


def is_tight(padding: str) -> bool:
    """ValueError unless padding is one of PADDINGS."""
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; known: {', '.join(PADDINGS)}")
    return padding == "tight"


def refuse_tight(padding: str, backbone: str) -> None:
    """For nets whose layers all pad by what they lose: ValueError unless padding is "reference", their own."""
    if is_tight(padding):
        raise ValueError(f"{backbone} has only the padding of its own layers, 'reference'; got {padding!r}")
