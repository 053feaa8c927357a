"""Mask files of any lossless kind: class indices, palettes, colours, 16-bit ids, 0 and 255, transparency."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.importing.classes import hex_colour
from pipeline.importing.export import UNKNOWN, Label
from pipeline.importing.photos import decode, has_deep_colours
from pipeline.importing.source import Source
from pipeline.importing.tables import Colour, Table
from pipeline.shards.labels import is_label_png

FORMATS = ("PNG", "TIFF", "BMP", "GIF")
VOID_VALUES = (255, -1)  # where no class has them; -1 in TIFFs, as in arrays of labelme2voc
MAX_NAMED_COLOURS = 64  # of one mask, in the message about colours without a class


class Pixels(NamedTuple):
    """A decoded mask.

    values: (H, W) uint8 or int64 of stored values, or (H, W, 3) uint8 colours.
    palette: (N, 3) uint8, the colours of values; None without a palette.
    by_alpha: whether the values are the transparency of a mask drawn in black.
    """

    values: NDArray
    palette: NDArray[np.uint8] | None = None
    by_alpha: bool = False


class Seen(NamedTuple):
    """What a scan found in a label PNG, so that it need not be decoded again.

    digest: sha256 of the file.
    size: (height, width).
    counts: pixels of each value that occurs.
    """

    digest: str
    size: tuple[int, int]
    counts: Mapping[int, int]


def read_mask(
    table: Table,
    path: str,
    source: Source,
    size: tuple[int, int],  # noqa: ARG001
    seen: Seen | None = None,
) -> Label:
    """Return the label of a mask file; used as an Item's `label` by functools.partial(read_mask, table, path)."""
    data = source.read(path)
    if (
        seen
        and seen.digest == source.digests[path]
        and not table.colours
        and all(_by_value(table, value) == value for value in seen.counts)
    ):
        return Label(None, png=data, counts=seen.counts, size=seen.size)
    pixels = decode_mask(data, path)
    label = to_label(pixels, table, path)
    if label.values is pixels.values and is_label_png(data):
        return label._replace(png=data)
    return label


def open_mask(data: bytes, where: str) -> Image.Image:
    """Return a decoded mask; refuse lossy ones."""
    if data.startswith(b"\xff\xd8\xff"):
        raise DatasetError(
            f"{where}: a JPEG mask; JPEG blends neighbouring labels into values that mean nothing. Save the masks as "
            "PNG from the annotation tool"
        )
    image = decode(data, where, FORMATS)
    if getattr(image, "n_frames", 1) > 1:
        raise DatasetError(f"{where}: several pictures in one file; save one mask a photo")
    return image


def decode_mask(data: bytes, where: str) -> Pixels:
    """Return the stored values or colours of a mask; refuse lossy and anti-aliased ones."""
    image = open_mask(data, where)
    bits = data[24] if image.format == "PNG" else 8  # of IHDR
    if has_deep_colours(image, data):
        raise DatasetError(f"{where}: a mask of 16-bit colours; save it with 8 bits per channel")
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return Pixels(np.asarray(image), palette)
    if image.mode == "1":
        return Pixels(np.asarray(image).astype(np.uint8))
    if image.mode == "L":
        values = np.asarray(image)
        return Pixels(values // (255 // (2**bits - 1)) if bits < 8 else values)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return Pixels(np.asarray(image).astype(np.int64))
    if image.mode in ("RGBA", "LA"):
        return _opaque(np.asarray(image.convert("RGBA")), where)
    if image.mode == "RGB":
        return Pixels(np.asarray(image))
    raise DatasetError(f"{where}: a mask of mode {image.mode}; save class indices or colours as an 8-bit PNG")


def _opaque(pixels: NDArray[np.uint8], where: str) -> Pixels:
    """Return colours with transparent pixels black; the transparency itself if some and all opaque pixels are black."""
    alpha = pixels[:, :, 3]
    partly = ((alpha > 0) & (alpha < 255)).mean()
    if partly:
        raise DatasetError(
            f"{where}: {partly:.1%} of the pixels are half transparent (an anti-aliased mask); export it without "
            "smoothing"
        )
    colours = np.where(alpha[:, :, None] == 0, 0, pixels[:, :, :3]).astype(np.uint8)
    if colours.any() or alpha.all():
        return Pixels(colours)
    return Pixels(alpha, by_alpha=True)


def value_counts(values: NDArray[Any]) -> dict[int, int]:
    """Return the number of pixels of each value that occurs, in the order of the values.

    values: (H, W), of integers.
    """
    if values.dtype == np.uint8:  # twenty times as fast as sorting them
        return index_counts(Image.fromarray(values))
    present, counts = np.unique(values, return_counts=True)
    return dict(zip(present.tolist(), counts.tolist(), strict=True))


def index_counts(image: Image.Image) -> dict[int, int]:
    """Return the number of pixels of each value that occurs in an image of 8-bit indices or greys."""
    return {value: num for value, num in enumerate(image.histogram()) if num}


def to_label(pixels: Pixels, table: Table, where: str) -> Label:
    """Return the classes of a mask's pixels."""
    values = pixels.values
    if values.ndim == 3:
        if table.colours or not is_grey(values):
            return _by_colour(values, table)
        values = values[:, :, 0]
    counts = value_counts(values)
    present = list(counts)
    colours = colours_of(present, pixels.palette) if table.colours else None
    by_value = {value: _by_value(table, value) for value in present}
    chosen = by_value
    if colours is not None:
        by_colour = {
            value: table.colours.get(colour, UNKNOWN) for value, colour in zip(present, colours, strict=True)
        }
        if (
            pixels.palette is not None and by_colour.get(255) == UNKNOWN
        ):  # VOC's border, in a colour of no class
            by_colour[255] = _by_value(table, 255)
        if table.has_values and pixels.palette is not None and _contradict(by_value, by_colour):
            raise DatasetError(
                f"{where}: its values and the colours of its palette are different classes in the class table; keep "
                "there the column that the masks follow"
            )
        first, second = (by_value, by_colour) if table.has_values else (by_colour, by_value)
        is_other = UNKNOWN in first.values() and UNKNOWN not in second.values()
        if is_other and not table.has_values:
            # Colours of classes under other numbers: the colours count, and strange ones are reported
            is_other = all(
                first[value] in (UNKNOWN, second[value]) or not any(colour)
                for value, colour in zip(present, colours, strict=True)
            )
        chosen = second if is_other else first
    unknown: dict[str, int] = {}
    for value in [value for value in present if chosen[value] == UNKNOWN]:
        name = hex_colour(colours[present.index(value)]) if colours and not table.has_values else str(value)
        unknown[name] = counts[value]
    if values.dtype == np.uint8 and all(value == label for value, label in chosen.items()) and not unknown:
        return Label(values, counts=counts)
    return Label(_look_up(values, chosen), unknown)


def _contradict(by_value: Mapping[int, int], by_colour: Mapping[int, int]) -> bool:
    """Return whether both give every value a class, and not the same."""
    is_whole = UNKNOWN not in by_value.values() and UNKNOWN not in by_colour.values()
    return is_whole and by_value != by_colour


def _by_value(table: Table, value: int) -> int:
    return table.values.get(value, IGNORE_LABEL if value in VOID_VALUES else UNKNOWN)


def colours_of(present: list[int], palette: NDArray[np.uint8] | None) -> list[Colour]:
    if palette is None:
        return [(value, value, value) for value in present]
    padded = np.zeros((256, 3), np.uint8)
    padded[: len(palette)] = palette
    return [tuple(padded[value].tolist()) for value in present]


def _look_up(values: NDArray, chosen: Mapping[int, int]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        table = np.full(256, UNKNOWN, np.uint8)
        table[list(chosen)] = list(chosen.values())
        return table[values]
    present = np.array(sorted(chosen))
    labels = np.array([chosen[value] for value in present.tolist()], np.uint8)
    return labels[np.searchsorted(present, values)]


def is_grey(colours: NDArray[np.uint8]) -> bool:
    return bool((colours[:, :, 0] == colours[:, :, 1]).all() and (colours[:, :, 0] == colours[:, :, 2]).all())


def packed_colours(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return each pixel's colour as 65536 R + 256 G + B, (H, W)."""
    wide = colours.astype(np.int32)
    return (wide[:, :, 0] << 16) | (wide[:, :, 1] << 8) | wide[:, :, 2]


def _by_colour(colours: NDArray[np.uint8], table: Table) -> Label:
    packed = packed_colours(colours)
    label = table.colour_table()[packed]
    strange = packed[label == UNKNOWN]
    if not strange.size:
        return Label(label)
    return Label(label, named_colours(strange))


def named_colours(packed: NDArray[np.int32]) -> dict[str, int]:
    """Return the number of pixels of the most frequent colours, by #rrggbb."""
    colours, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_NAMED_COLOURS]
    return {f"#{colours[number]:06x}": int(counts[number]) for number in order}
