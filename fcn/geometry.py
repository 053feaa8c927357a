"""Coordinate maps: where the cells of one layer lie in another, and so every crop offset of the paper.

A layer that slides a window maps positions by scale * i + shift. The maps are composed from the image down to a score
map and back up; their difference is the crop that aligns two maps (the idea of Caffe's coord_map.py). Nothing here
is specific to one network: offsets 19, 27, 31, 5, 9, 18 and kernels 64 and 63 follow from the layers.
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
        """Return the layers of each path, in order; a shortcut has none."""
        ...


@dataclass(frozen=True)
class CoordMap:
    """The positions of a layer's cells in the image: cell i is centred on pixel `scale * i + shift`.

    scale: pixels from one cell to the next, exact.
    shift: pixel on which cell 0 is centred, exact.
    field: receptive field of a cell, in pixels a side, padding included. Maps that differ in it alone are equal.
    """

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)
    field: Fraction = field(default=Fraction(1), compare=False)

    def conv(self, kernel: int, stride: int = 1, padding: int = 0) -> "CoordMap":
        """Return the map after a convolution or pooling with this window."""
        shift = self.shift + self.scale * (Fraction(kernel - 1, 2) - padding)
        return CoordMap(self.scale * stride, shift, self.field + self.scale * (kernel - 1))

    def deconv(self, kernel: int, stride: int, padding: int = 0) -> "CoordMap":
        """Return the map after a transposed convolution: the inverse of the convolution's map."""
        scale, num_seen = self.scale / stride, -(-kernel // stride)
        shift = self.shift - scale * (Fraction(kernel - 1, 2) - padding)
        return CoordMap(scale, shift, self.field + self.scale * (num_seen - 1))

    def through(self, layers: Iterable[nn.Module]) -> "CoordMap":
        """Return the map after these layers. A layer without a window (ReLU, batch norm, dropout) does not change it.

        After branches, the field is the largest of theirs.

        Raises ValueError if branches end on different positions, or if a layer has inner layers and no `branches`.
        """
        here = self
        for layer in layers:
            if isinstance(layer, Windowed):
                here = here._after(layer)
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

    def _after(self, layer: Windowed) -> "CoordMap":
        kernel, stride, padding = (_square(layer, name) for name in ("kernel_size", "stride", "padding"))
        if not isinstance(layer, nn.AvgPool2d):
            kernel = _square(layer, "dilation") * (kernel - 1) + 1
        step = self.deconv if isinstance(layer, nn.ConvTranspose2d) else self.conv
        return step(kernel, stride, padding)


IMAGE = CoordMap()


def receptive_field(layers: Iterable[nn.Module]) -> int:
    """Return the receptive field of one cell after these layers, in pixels a side: 404 for VGG-16 up to fc6 (PAMI)."""
    return int(IMAGE.through(layers).field)


def crop_offset(source: CoordMap, target: CoordMap) -> int:
    """Return the cell of `source` on which cell 0 of `target` lies; negative if source begins later.

    Cropping source by the offset, or padding it if the offset is negative, aligns the two maps.

    Raises ValueError if the strides differ or the offset is not a whole number of cells.
    """
    if source.scale != target.scale:
        raise ValueError(f"maps of stride {source.scale} and {target.scale} cannot be aligned by a crop")
    offset = _cells_apart(source, target)
    if offset.denominator != 1:
        raise ValueError(f"maps lie {offset} cells apart; only whole cells can be cropped")
    return int(offset)


def upsampling_kernel(coarse: CoordMap, fine: CoordMap) -> int:
    """Return the kernel that upsamples `coarse` by a factor s onto the cells of `fine`: 2s or 2s - 1, both bilinear.

    The reference release has 64 for VGG-16 and 63 for AlexNet.

    Raises ValueError if s is not a whole number, or if neither kernel meets the cells of fine.
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
