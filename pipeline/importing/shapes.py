"""Shapes and run lengths drawn as pixels.

Polygons, rectangles, circles and lines are drawn by Pillow's ImageDraw with their outline, as labelme does it: a pixel
belongs to a polygon if its centre lies inside or its outline passes through it. COCO's polygons are drawn by COCO's own
rule, that of pycocotools: the boundary on a grid of fifths of a pixel, an even number of crossings is outside.
"""

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import DatasetError
from pipeline.importing.photos import decode
from pipeline.shards.images import MAX_BYTES, MAX_PIXELS

Mask = NDArray[np.bool_]
MAX_POINTS = 2**20


def points_of(values: Any, where: str, at_least: int) -> list[tuple[float, float]]:
    """Check a list of [x, y] of finite numbers."""
    try:
        points = [(float(x), float(y)) for x, y in values]
    except (TypeError, ValueError) as error:
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


def polygon(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Mask:
    return _drawn(size, lambda draw: draw.polygon(_clipped(points, size), outline=1, fill=1))


def rectangle(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Mask:
    (x1, y1), (x2, y2) = points
    box = _clipped([(min(x1, x2), min(y1, y2)), (max(x1, x2), max(y1, y2))], size)
    return _drawn(size, lambda draw: draw.rectangle(box, outline=1, fill=1))


def circle(centre: tuple[float, float], radius: float, size: tuple[int, int]) -> Mask:
    x, y = centre
    box = [(x - radius, y - radius), (x + radius, y + radius)]
    return _drawn(size, lambda draw: draw.ellipse(box, outline=1, fill=1))


def line(points: Sequence[tuple[float, float]], width: int, size: tuple[int, int]) -> Mask:
    return _drawn(size, lambda draw: draw.line(_clipped(points, size), fill=1, width=width))


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


def _clipped(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Keep coordinates within what Pillow draws in a bounded time: far outside, a point's distance changes nothing."""
    limit = 16.0 * max(size) + 1024
    return [(min(max(x, -limit), limit), min(max(y, -limit), limit)) for x, y in points]


def _drawn(size: tuple[int, int], draw: Any) -> Mask:
    image = Image.new("1", (size[1], size[0]))
    draw(ImageDraw.Draw(image))
    return np.array(image, bool)


def coco_polygon(flat: Sequence[float], size: tuple[int, int], where: str) -> Mask:
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
    crossings = np.bincount(x[kept].astype(np.int64) * height + y, minlength=height * width + 1)
    inside = np.cumsum(crossings)[: height * width] % 2 == 1
    return inside.reshape(width, height).T


def coco_rle(counts: Any, stated: Any, size: tuple[int, int], where: str) -> Mask:
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
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[::-1]).T


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


def label_studio_rle(values: Any, size: tuple[int, int], where: str) -> Mask:
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
    return out.reshape(*size, 4)[:, :, 3] >= 128


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


def paste(mask: Mask, piece: Mask, x: int, y: int) -> None:
    """Set the pixels of a piece whose upper left corner is at (x, y); what reaches over the edge is cut off."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + piece.shape[0], mask.shape[0]), min(x + piece.shape[1], mask.shape[1])
    if bottom > top and right > left:
        mask[top:bottom, left:right] |= piece[top - y : bottom - y, left - x : right - x]
