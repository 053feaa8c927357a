"""Shapes and run lengths drawn as pixels.

Polygons, rectangles, circles and lines are drawn by Pillow's ImageDraw with their outline, as labelme does it: a pixel
belongs to a polygon if its centre lies inside or its outline passes through it. COCO's polygons are drawn by COCO's own
rule, that of pycocotools: the boundary on a grid of fifths of a pixel, an even number of crossings is outside.

A shape is drawn within its own box, so that a small object of a large photo takes little time and memory.
"""

import base64
import binascii
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import DatasetError
from pipeline.importing.photos import decode
from pipeline.shards.images import MAX_BYTES, MAX_PIXELS

Mask = NDArray[np.bool_]
MAX_POINTS = 2**20


class Piece(NamedTuple):
    """The pixels of a shape.

    top, left: of its box, inside the photo.
    pixels: (H, W) bool, of the box.
    """

    top: int
    left: int
    pixels: Mask

    @property
    def bottom(self) -> int:
        return self.top + self.pixels.shape[0]

    @property
    def right(self) -> int:
        return self.left + self.pixels.shape[1]

    def paint(self, label: NDArray[Any], value: int | bool) -> None:
        """Set the shape's pixels in the label of a whole photo."""
        label[self.top : self.bottom, self.left : self.right][self.pixels] = value


def union(pieces: Sequence[Piece]) -> Piece:
    """Return the pixels of one piece or more."""
    if len(pieces) == 1:
        return pieces[0]
    top, left = min(piece.top for piece in pieces), min(piece.left for piece in pieces)
    bottom, right = max(piece.bottom for piece in pieces), max(piece.right for piece in pieces)
    pixels = np.zeros((bottom - top, right - left), bool)
    for piece in pieces:
        piece._replace(top=piece.top - top, left=piece.left - left).paint(pixels, True)
    return Piece(top, left, pixels)


def points_of(values: Any, where: str, at_least: int) -> list[tuple[float, float]]:
    """Check a list of [x, y] of finite numbers."""
    try:
        points = [(float(x), float(y)) for x, y in values]
    except (TypeError, ValueError, OverflowError) as error:  # overflow: an integer of hundreds of digits
        raise DatasetError(f"{where}: points {str(values)[:60]} are not a list of [x, y]") from error
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in points):
        raise DatasetError(f"{where}: a point is not a finite number")
    if not at_least <= len(points) <= MAX_POINTS:
        raise DatasetError(f"{where}: {len(points)} points; expected {at_least} or more")
    return points


def check_inside(points: Sequence[tuple[float, float]], size: tuple[int, int], where: str) -> None:
    """Refuse a shape of which nothing lies inside the photo; what reaches over its edge is cut off."""
    height, width = size
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if max(xs) < 0 or max(ys) < 0 or min(xs) > width or min(ys) > height:
        raise DatasetError(
            f"{where}: lies outside the photo of {width} x {height} (width, height); it may belong to another photo"
        )


def polygon(
    points: Sequence[tuple[float, float]],
    size: tuple[int, int],
    holes: Sequence[Sequence[tuple[float, float]]] = (),
) -> Piece:
    def draw(canvas: ImageDraw.ImageDraw) -> None:
        canvas.polygon(_clipped(points, size), outline=1, fill=1)
        for hole in holes:
            canvas.polygon(_clipped(hole, size), outline=0, fill=0)

    return _drawn(points, size, draw)


def rectangle(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Piece:
    (x1, y1), (x2, y2) = points
    box = _clipped([(min(x1, x2), min(y1, y2)), (max(x1, x2), max(y1, y2))], size)
    return _drawn(box, size, lambda canvas: canvas.rectangle(box, outline=1, fill=1))


def circle(centre: tuple[float, float], radius: float, size: tuple[int, int], where: str) -> Piece:
    if radius > _far(size):  # Pillow's time grows with the radius
        raise DatasetError(f"{where}: a circle with a radius of {radius:.0f} pixels; export it again")
    x, y = centre
    box = [(x - radius, y - radius), (x + radius, y + radius)]
    check_inside(box, size, where)
    return _drawn(box, size, lambda canvas: canvas.ellipse(box, outline=1, fill=1))


def line(points: Sequence[tuple[float, float]], width: int, size: tuple[int, int]) -> Piece:
    return _drawn(
        points, size, lambda canvas: canvas.line(_clipped(points, size), fill=1, width=width), width
    )


def ellipse_points(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float
) -> list[tuple[float, float]]:
    """Return a polygon of 72 points for a turned ellipse."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    turn = math.radians(degrees)
    xs, ys = radius_x * np.cos(angles), radius_y * np.sin(angles)
    turned_x = x + xs * math.cos(turn) - ys * math.sin(turn)
    turned_y = y + xs * math.sin(turn) + ys * math.cos(turn)
    return list(zip(turned_x.tolist(), turned_y.tolist(), strict=True))


def _far(size: tuple[int, int]) -> float:
    """Return a coordinate far outside the photo, up to which Pillow draws in a bounded time."""
    return 16.0 * max(size) + 1024


def _clipped(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Keep coordinates within what Pillow draws: far outside, a point's distance changes nothing."""
    limit = _far(size)
    return [(min(max(x, -limit), limit), min(max(y, -limit), limit)) for x, y in points]


def _drawn(
    points: Sequence[tuple[float, float]],
    size: tuple[int, int],
    draw: Callable[[ImageDraw.ImageDraw], None],
    margin: int = 0,
) -> Piece:
    """Return what `draw` draws.

    points: their box, with a margin in pixels, holds all of it.
    """
    # As large as the photo, because Pillow's rounding depends on a polygon's place; only the box is looked at
    image = Image.new("1", (size[1], size[0]))
    draw(ImageDraw.Draw(image))
    xs, ys = zip(*_clipped(points, size), strict=True)
    left, right = _within(xs, margin, size[1])
    top, bottom = _within(ys, margin, size[0])
    return Piece(top, left, np.array(image.crop((left, top, right, bottom)), bool))


def _within(values: Sequence[float], margin: int, side: int) -> tuple[int, int]:
    """Return the first pixel of a shape along one side of the photo, and the end of them."""
    first = min(max(math.floor(min(values)) - margin, 0), side)
    return first, max(min(math.ceil(max(values)) + margin + 1, side), first)


def coco_polygon(flat: Sequence[float], size: tuple[int, int], where: str) -> Piece:
    """Return COCO's polygon [x1, y1, x2, y2, ...] as pycocotools draws it (rleFrPoly), pixel for pixel."""
    if not isinstance(flat, list) or len(flat) < 6 or len(flat) % 2:
        raise DatasetError(f"{where}: a polygon {str(flat)[:60]}; expected x, y of three points or more")
    points = points_of(list(zip(flat[::2], flat[1::2], strict=True)), where, 3)
    check_inside(points, size, where)
    height, width = size
    limit = 2.0**28
    corners = np.array(points) * 5 + 0.5
    corners = np.trunc(np.clip(corners, -limit, limit)).astype(np.int64)
    across, down = [], []
    for (x1, y1), (x2, y2) in zip(corners.tolist(), np.roll(corners, -1, 0).tolist(), strict=True):
        dx, dy = abs(x2 - x1), abs(y2 - y1)
        if max(dx, dy) > MAX_PIXELS:
            raise DatasetError(
                f"{where}: a point lies {max(dx, dy) // 5} pixels from the next; export it again"
            )
        flip = (dx >= dy and x1 > x2) or (dx < dy and y1 > y2)
        if flip:
            x1, y1, x2, y2 = x2, y2, x1, y1
        steps = np.arange(max(dx, dy) + 1)
        steps = steps[::-1] if flip else steps
        if dx >= dy:
            slope = (y2 - y1) / dx if dx else 0.0
            across.append(steps + x1)
            down.append(np.trunc(y1 + slope * steps + 0.5).astype(np.int64))
        else:
            slope = (x2 - x1) / dy
            down.append(steps + y1)
            across.append(np.trunc(x1 + slope * steps + 0.5).astype(np.int64))
    u, v = np.concatenate(across), np.concatenate(down)
    moved = u[1:] != u[:-1]
    before, after, low, high = u[:-1][moved], u[1:][moved], v[:-1][moved], v[1:][moved]
    x = (np.where(after < before, after, after - 1) + 0.5) / 5 - 0.5
    y = (np.where(high < low, high, low) + 0.5) / 5 - 0.5
    kept = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    y = np.ceil(np.clip(y[kept], 0, height)).astype(np.int64)
    if not y.size:
        return Piece(0, 0, np.zeros((0, 0), bool))
    x = x[kept].astype(np.int64)
    top, left = int(y.min()), int(x.min())
    rows, columns = int(y.max()) - top, int(x.max()) - left + 1
    # A column has an even number of crossings, so that each begins outside; one at the lower end starts the next
    crossings = np.bincount((x - left) * rows + y - top, minlength=rows * columns + 1)
    inside = np.cumsum(crossings, dtype=np.uint8)[: rows * columns] % 2 == 1  # uint8 keeps what is odd
    return Piece(top, left, inside.reshape(columns, rows).T)


def coco_rle(counts: Any, stated: Any, size: tuple[int, int], where: str) -> Piece:
    """Return COCO's run lengths, a list or a compressed string, column by column, zeros first."""
    if stated not in (None, list(size)):
        raise DatasetError(
            f"{where}: run lengths of size {stated}, its photo has {list(size)} (height, width)"
        )
    runs = _decompressed(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise DatasetError(f"{where}: run lengths are not whole numbers from 0 on")
    if sum(runs) != size[0] * size[1]:
        raise DatasetError(
            f"{where}: run lengths of {sum(runs)} pixels, its photo has {size[0] * size[1]}; export it again"
        )
    if not any(runs[1::2]):
        return Piece(0, 0, np.zeros((0, 0), bool))
    height = size[0]
    first = next(number for number in range(1, len(runs), 2) if runs[number])
    last = next(number for number in range(len(runs) - 1 - len(runs) % 2, 0, -2) if runs[number])
    start = sum(runs[:first])
    held = np.repeat(np.arange(first, last + 1) % 2 == 1, runs[first : last + 1])
    left, end = start // height, -(-(start + held.size) // height)
    pixels = np.zeros((end - left) * height, bool)
    pixels[start - left * height :][: held.size] = held
    return Piece(0, left, pixels.reshape(-1, height).T)


def _decompressed(text: str, where: str) -> list[int]:
    """Read COCO's compressed counts: 5 bits a character from '0' on, low bits first, differences from the third on."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(text) or not 0 <= (code := ord(text[position]) - 48) < 64 or shift > 60:
                raise DatasetError(f"{where}: damaged compressed run lengths; export it again")
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            position += 1
            shift += 5
            if not more and code & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def label_studio_rle(values: Any, size: tuple[int, int], where: str) -> Piece:
    """Return a brush region of Label Studio: a bit stream of (height, width, 4) values; alpha from 128 on counts."""
    try:
        data = np.array(values, np.int64)
        if data.ndim != 1 or data.size < 6 or data.min() < 0 or data.max() > 255:
            raise ValueError("not a list of bytes")
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{where}: brush run lengths are damaged ({error}); export it again") from error
    bits = "".join(map("{:08b}".format, data.tolist()))
    total, position = int(bits[:32], 2), 32

    def take(number: int) -> int:
        nonlocal position
        if position + number > len(bits):
            raise DatasetError(f"{where}: brush run lengths end too early; export it again")
        position += number
        return int(bits[position - number : position], 2)

    if total != size[0] * size[1] * 4:
        raise DatasetError(
            f"{where}: a brush region of {total // 4} pixels, its photo has {size[0] * size[1]}; export it again"
        )
    word = take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    out = np.zeros(total, np.uint8)
    start = 0
    while start < total:
        is_run = take(1)
        end = start + 1 + take(lengths[take(2)])
        if end > total:
            raise DatasetError(f"{where}: brush run lengths hold more values than pixels; export it again")
        if is_run:
            out[start:end] = take(word) & 255
        else:
            for number in range(start, end):
                out[number] = take(word) & 255
        start = end
    return Piece(0, 0, out.reshape(*size, 4)[:, :, 3] >= 128)


def bitmap(text: Any, where: str, *, is_packed: bool) -> Mask:
    """Return a small picture held in JSON: base64 of a PNG, packed by zlib first if Supervisely wrote it."""
    try:
        data = base64.b64decode(text, validate=True)
        if is_packed:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, MAX_BYTES)
            if unpacker.unconsumed_tail:
                raise DatasetError(
                    f"{where}: a bitmap unpacks to more than {MAX_BYTES} bytes; it may be a bomb"
                )
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{where}: a bitmap is damaged ({error}); export it again") from error
    image = decode(data, where, ("PNG",))
    pixels = np.asarray(image.convert("RGBA") if "A" in image.getbands() else image)
    if pixels.ndim == 3:
        pixels = pixels[:, :, 3] if pixels.shape[2] == 4 else pixels.max(2)
    return pixels > 0


def placed(pixels: Mask, x: int, y: int, size: tuple[int, int]) -> Piece:
    """Return a bitmap whose upper left corner is at (x, y); what reaches over the photo's edge is cut off."""
    top, left = max(y, 0), max(x, 0)
    return Piece(top, left, pixels[top - y : max(size[0] - y, 0), left - x : max(size[1] - x, 0)])
