"""VGG-16 as the FCN trunk: thirteen convolutions, five poolings, and fc6/fc7 as convolutions."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from fcn.geometry import IMAGE, CoordMap
from fcn.pixels import PixelNormalization


class Features(NamedTuple):
    """What a backbone hands to the score layers, at strides 8, 16 and 32."""

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


BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions before each pooling
FC_CHANNELS = 4096
REFERENCE_PADDING = 100  # conv1_1; lets a 1-pixel image survive five poolings and fc6 (reference net.py)
TIGHT_PADDING = 4  # 100 = 4 + 3 * 32: with fc6 padded by 3 the score grid lies on the same image positions


class VGG16(nn.Module):
    """The trunk of FCN-32s/16s/8s: image -> Features. Layers carry the reference's names.

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
        super().__init__()
        if padding not in ("reference", "tight"):
            raise ValueError(f"unknown padding {padding!r}; known: reference, tight")
        if fc6_kernel % 2 == 0:
            raise ValueError(f"fc6_kernel must be odd to be centred on its cell, got {fc6_kernel}")
        is_tight = padding == "tight"
        self.pixels = PixelNormalization(pixels)
        for name, layer in _trunk(width, batch_norm, TIGHT_PADDING if is_tight else REFERENCE_PADDING):
            self.add_module(name, layer)
        fc = _scaled(FC_CHANNELS, width)
        fc6_padding = fc6_kernel // 2 if is_tight else 0
        self.fc6 = nn.Conv2d(_scaled(BLOCKS[-1][0], width), fc, fc6_kernel, padding=fc6_padding)
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(dropout)
        self._initialise()

        self.channels = Channels(_scaled(BLOCKS[2][0], width), _scaled(BLOCKS[3][0], width), fc)
        self.geometry = Geometry(*(IMAGE.through(self._until(name)) for name in ("pool3", "pool4", "drop7")))

    def forward(self, image: Tensor) -> Features:
        """image: (N, 3, H, W) RGB, uint8 or float in 0..255."""
        pool3 = pool4 = x = image
        for name, layer in self.named_children():
            x = layer(x)
            if name == "pool3":
                pool3 = x
            elif name == "pool4":
                pool4 = x
        return Features(pool3, pool4, x)

    def _until(self, last: str) -> Iterator[nn.Module]:
        for name, layer in self.named_children():
            yield layer
            if name == last:
                return

    def _initialise(self) -> None:
        """He et al.'s fan-out rule, for training from scratch; pretrained weights overwrite it."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _trunk(width: float, batch_norm: bool, first_padding: int) -> Iterator[tuple[str, nn.Module]]:
    """conv1_1 ... pool5, in order."""
    before = 3
    for block, (channels, num_convs) in enumerate(BLOCKS, start=1):
        after = _scaled(channels, width)
        for i in range(1, num_convs + 1):
            padding = first_padding if (block, i) == (1, 1) else 1
            yield f"conv{block}_{i}", nn.Conv2d(before, after, 3, padding=padding)
            if batch_norm:
                yield f"bn{block}_{i}", nn.BatchNorm2d(after)
            yield f"relu{block}_{i}", nn.ReLU(inplace=True)
            before = after
        # Caffe pools round up; rounding down leaves FCN-32s too short for 372 of the heights 1..999
        yield f"pool{block}", nn.MaxPool2d(2, 2, ceil_mode=True)
