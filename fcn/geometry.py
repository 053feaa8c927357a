"""Where a cell of one layer lies in another: the arithmetic behind every crop offset of the paper.

A layer that slides a window maps positions by scale * i + shift. Composing those maps from the image down to a
score map and back up gives the crop that aligns two maps (the idea of Caffe's coord_map.py). Nothing here knows
a network: 19, 27, 31, 5, 9, 18 and the kernels 64 and 63 come out of the layers themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, runtime_checkable

from torch import nn

Windowed = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.ConvTranspose2d


@runtime_checkable
class Branched(Protocol):
    """A layer that joins several paths from its input: an Inception module, a residual block."""

    def branches(self) -> Iterable[Iterable[nn.Module]]:
        """The layers of each path, in order; a shortcut has none."""
        ...


@dataclass(frozen=True)
class CoordMap:
    """Cell i of a layer is centred on image position `scale * i + shift`, in pixels; both exact.

    field: how many pixels a cell sees from one side to the other, padding included; no part of where it lies.
    """

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)
    field: Fraction = field(default=Fraction(1), compare=False)

    def conv(self, kernel: int, stride: int = 1, padding: int = 0) -> "CoordMap":
        """The map behind one more convolution or pooling with this window."""
        shift = self.shift + self.scale * (Fraction(kernel - 1, 2) - padding)
        return CoordMap(self.scale * stride, shift, self.field + self.scale * (kernel - 1))

    def deconv(self, kernel: int, stride: int, padding: int = 0) -> "CoordMap":
        """The map behind one more transposed convolution: the convolution's map turned round."""
        scale, num_seen = self.scale / stride, -(-kernel // stride)
        shift = self.shift - scale * (Fraction(kernel - 1, 2) - padding)
        return CoordMap(scale, shift, self.field + self.scale * (num_seen - 1))

    def through(self, layers: Iterable[nn.Module]) -> "CoordMap":
        """The map behind these layers; one without a window (ReLU, batch norm, dropout) changes nothing.

        Branches must end on the same positions; the field is that of the branch that sees most.
        """
        here = self
        for layer in layers:
            if isinstance(layer, Windowed):
                here = here._behind(layer)
            elif isinstance(layer, Branched):
                ends = [here.through(branch) for branch in layer.branches()]
                if len(set(ends)) != 1:
                    raise ValueError(f"the branches of {type(layer).__name__} end on different positions")
                here = max(ends, key=lambda end: end.field)
            elif isinstance(layer, nn.Sequential):
                here = here.through(layer)
            elif any(layer.children()):
                raise ValueError(f"{type(layer).__name__} has layers inside; give it branches()")
        return here

    def _behind(self, layer: Windowed) -> "CoordMap":
        kernel, stride, padding = (_square(layer, name) for name in ("kernel_size", "stride", "padding"))
        if not isinstance(layer, nn.AvgPool2d):
            kernel = _square(layer, "dilation") * (kernel - 1) + 1
        step = self.deconv if isinstance(layer, nn.ConvTranspose2d) else self.conv
        return step(kernel, stride, padding)


IMAGE = CoordMap()


def receptive_field(layers: Iterable[nn.Module]) -> int:
    """The side of the square of pixels that one cell behind these layers sees: 404 for VGG-16 up to fc6 (PAMI)."""
    return int(IMAGE.through(layers).field)


def crop_offset(source: CoordMap, target: CoordMap) -> int:
    """The cell of `source` that lies where `target` begins; negative if source begins later.

    Cropping (or, if negative, padding) source by it aligns the two. ValueError if no whole number of cells does.
    """
    if source.scale != target.scale:
        raise ValueError(f"maps of stride {source.scale} and {target.scale} cannot be aligned by a crop")
    offset = _cells_apart(source, target)
    if offset.denominator != 1:
        raise ValueError(f"maps lie {offset} cells apart; only whole cells can be cropped")
    return int(offset)


def upsampling_kernel(coarse: CoordMap, fine: CoordMap) -> int:
    """The window that upsamples `coarse` by s onto positions of `fine`: 2s or 2s - 1 cells, both bilinear.

    The reference release has 64 for VGG-16 and 63 for AlexNet. ValueError if neither meets fine in whole cells.
    """
    stride = coarse.scale / fine.scale
    if stride.denominator != 1:
        raise ValueError(f"a map of stride {coarse.scale} cannot be upsampled to stride {fine.scale}")
    for kernel in (2 * int(stride), 2 * int(stride) - 1):
        if _cells_apart(coarse.deconv(kernel, int(stride)), fine).denominator == 1:
            return kernel
    raise ValueError(f"a map of stride {coarse.scale} shifted by {coarse.shift} pixels has no cell of {fine}")


def _cells_apart(source: CoordMap, target: CoordMap) -> Fraction:
    return (target.shift - source.shift) / source.scale


def _square(layer: Windowed, name: str) -> int:
    value = getattr(layer, name)
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ValueError(f"{type(layer).__name__}.{name} = {value}: only square windows have one CoordMap")
    return side
