"""Tiles of an image too large to run at once. They overlap so far that their scores are those of the whole image."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError

if TYPE_CHECKING:
    from fcn.model import FCN

SIDE = 1536  # pixels, of the tiles of most nets; VGG-16 takes about 2 GB for one


class Overlap(NamedTuple):
    """How far tiles of a net overlap, in pixels.

    stride: tiles begin at multiples of it, so that their cells lie where the whole image's cells lie.
    margin: scores at least this far from a tile's end are those of the whole image; a multiple of `stride`.
    """

    stride: int
    margin: int

    @property
    def default_side(self) -> int:
        """The side of a tile, in pixels.

        EfficientNet-Lite's margins would leave 512 or 256 pixels of SIDE. In tiles of five margins it computes each
        pixel 2.8 times; VGG-16 does so 2.6 times in tiles of SIDE.
        """
        return max(SIDE, 5 * self.margin)

    def require(self, side: int) -> None:
        """Raise UserError if tiles of `side` pixels would consist of overlap only."""
        smallest = 2 * self.margin + self.stride
        if side < smallest:
            raise UserError(f"a tile of {side} pixels is all overlap with this net; give at least {smallest}")


class Span(NamedTuple):
    """One side of a tile: the net runs on pixels first..last-1, and the scores of pixels start..end-1 are used."""

    first: int
    last: int
    start: int
    end: int

    @property
    def used(self) -> slice:
        """The used scores within the tile."""
        return slice(self.start - self.first, self.end - self.first)


Region = tuple[slice, slice]  # rows and columns


class Tile(NamedTuple):
    rows: Span
    columns: Span

    @property
    def crop(self) -> Region:
        """The pixels of the image on which the net runs."""
        return slice(self.rows.first, self.rows.last), slice(self.columns.first, self.columns.last)

    @property
    def region(self) -> Region:
        """The pixels of the image whose scores are used."""
        return slice(self.rows.start, self.rows.end), slice(self.columns.start, self.columns.end)

    @property
    def used(self) -> Region:
        """The used scores within the tile."""
        return self.rows.used, self.columns.used


def overlap(model: "FCN") -> Overlap:
    """Return how far tiles of this net have to overlap.

    A pixel's score depends on cells of fc7 within reach of the upsamplings, and each cell depends on pixels up to half
    its receptive field away. The skips reach less far: their cells are finer and pass fewer upsamplings.
    """
    from torch import nn  # imported here because an ONNX file runs without torch

    coarse = model.backbone.geometry.fc7
    fine = coarse.through(layer for layer in model.children() if isinstance(layer, nn.ConvTranspose2d))
    reach = coarse.field / 2 + (fine.field - coarse.field)
    stride = int(coarse.scale)
    return Overlap(stride, math.ceil(reach / stride) * stride)


def tiles_of(height: int, width: int, side: int, overlap: Overlap) -> Iterator[Tile]:
    """Yield tiles of at most side x side pixels. Their used parts cover the image, each pixel once.

    Raises UserError if tiles of `side` pixels would consist of overlap only.
    """
    overlap.require(side)
    for rows in _spans(height, side, overlap):
        for columns in _spans(width, side, overlap):
            yield Tile(rows, columns)


def _spans(length: int, side: int, overlap: Overlap) -> Iterator[Span]:
    start = 0
    while start < length:
        first = max(0, start - overlap.margin)
        last = min(length, first + side)
        end = length if last == length else (last - overlap.margin) // overlap.stride * overlap.stride
        yield Span(first, last, start, end)
        start = end
