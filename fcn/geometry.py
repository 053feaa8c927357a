"""Where a cell of one layer lies in another: the arithmetic behind every crop offset of the paper.

A layer that slides a window maps positions by scale * i + shift. Composing those maps from the image down to a
score map and back up gives the crop that aligns two maps (the idea of Caffe's coord_map.py). Nothing here knows
a network: 19, 27, 31, 5 and 9 come out of the layers themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

Windowed = nn.Conv2d | nn.MaxPool2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class CoordMap:
    """Cell i of a layer is centred on image position `scale * i + shift`, in pixels; both exact."""

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def conv(self, kernel: int, stride: int = 1, padding: int = 0) -> "CoordMap":
        """The map behind one more convolution or pooling with this window."""
        return CoordMap(self.scale * stride, self.shift + self.scale * (Fraction(kernel - 1, 2) - padding))

    def deconv(self, kernel: int, stride: int, padding: int = 0) -> "CoordMap":
        """The map behind one more transposed convolution: the convolution's map turned round."""
        scale = self.scale / stride
        return CoordMap(scale, self.shift - scale * (Fraction(kernel - 1, 2) - padding))

    def through(self, layers: Iterable[nn.Module]) -> "CoordMap":
        """The map behind these layers; one without a window (ReLU, batch norm, dropout) changes nothing."""
        here = self
        for layer in layers:
            if isinstance(layer, Windowed):
                kernel, stride, padding = (
                    _square(layer, name) for name in ("kernel_size", "stride", "padding")
                )
                step = here.deconv if isinstance(layer, nn.ConvTranspose2d) else here.conv
                here = step(kernel, stride, padding)
        return here


IMAGE = CoordMap()


def crop_offset(source: CoordMap, target: CoordMap) -> int:
    """The cell of `source` that lies where `target` begins; negative if source begins later.

    Cropping (or, if negative, padding) source by it aligns the two. ValueError if no whole number of cells does.
    """
    if source.scale != target.scale:
        raise ValueError(f"maps of stride {source.scale} and {target.scale} cannot be aligned by a crop")
    offset = (target.shift - source.shift) / source.scale
    if offset.denominator != 1:
        raise ValueError(f"maps lie {offset} cells apart; only whole cells can be cropped")
    return int(offset)


def _square(layer: Windowed, name: str) -> int:
    value = getattr(layer, name)
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ValueError(f"{type(layer).__name__}.{name} = {value}: only square windows have one CoordMap")
    return side
