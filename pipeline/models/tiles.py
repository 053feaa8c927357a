"""Images too large to be run at once, in tiles that overlap so far that no score tells where they meet."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError

if TYPE_CHECKING:
    from fcn.model import FCN


class Overlap(NamedTuple):
    """stride: tiles begin at multiples of it, for their cells to lie where the whole image's do.

    margin: a multiple of it; the scores this far from a tile's end, or farther, are those of the whole image.
    """

    stride: int
    margin: int


class Span(NamedTuple):
    """Of one side of an image: pixels first..last-1 are run, and of their scores start..end-1 are used."""

    first: int
    last: int
    start: int
    end: int


class Tile(NamedTuple):
    rows: Span
    columns: Span


def overlap(model: "FCN") -> Overlap:
    """How far tiles of this net have to overlap.

    A pixel's score comes from cells of fc7 that lie less than an upsampling's reach away, each of which sees half its
    receptive field to every side. The skips see less: their cells are finer and pass fewer upsamplings.
    """
    from torch import nn  # an ONNX file is run without

    coarse = model.backbone.geometry.fc7
    fine = coarse.through(layer for layer in model.children() if isinstance(layer, nn.ConvTranspose2d))
    reach = coarse.field / 2 + (fine.field - coarse.field)
    stride = int(coarse.scale)
    return Overlap(stride, math.ceil(reach / stride) * stride)


def tiles(height: int, width: int, side: int, overlap: Overlap) -> Iterator[Tile]:
    """Tiles of at most side x side pixels whose used parts are the image, each pixel once.

    UserError if the overlap leaves nothing of a tile.
    """
    least = 2 * overlap.margin + overlap.stride
    if side < least:
        raise UserError(f"a tile of {side} pixels is all overlap with this net; give at least {least}")
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
