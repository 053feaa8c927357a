"""Labels, also called masks, as palette PNGs: encoding, decoding and the check of their values.

Errors are DatasetErrors. A message starts with `where`, the caller's name for the file.
"""

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.files import and_more
from pipeline.shards.images import REMEDY, decode_image


def encode_label(label: NDArray[np.uint8]) -> bytes:
    """Return a label as a PNG whose 8-bit palette indices are its values, in the colours of VOC.

    The same label gives the same bytes on every machine: Z_RLE finds matches without zlib's tuning tables, so zlib
    and zlib-ng agree. All 256 colours are written, or Pillow would pack the pixels into fewer bits.

    label: (H, W) uint8, any values.
    """
    assert label.dtype == np.uint8, label.dtype
    assert label.ndim == 2, label.shape
    image = Image.fromarray(label)
    image.putpalette(voc_palette().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_type=3)  # zlib.Z_RLE
    return file.getvalue()


def is_label_png(data: bytes) -> bool:
    """Return whether a file starts as encode_label and VOC write it: 8-bit palette indices in VOC's colours."""
    depth_and_colour = data[24:29]  # of IHDR, which is always the first chunk
    palette = data[37 : 41 + 768]  # the chunk after it
    return depth_and_colour == b"\x08\x03\0\0\0" and palette == b"PLTE" + voc_palette().tobytes()


def decode_label(png: bytes, where: str = "label") -> NDArray[np.uint8]:
    """Return the values, never the colours, of a palette PNG of any bit depth or an 8-bit greyscale PNG.

    Decoded by Pillow: torchvision's PNG decoder crashes the process on a damaged file and misreads short indices.

    Returns (H, W) uint8.
    """
    image = decode_image(png, "PNG", where)
    bits = png[24]  # of IHDR; Pillow stretches 2- and 4-bit greyscale to 0..255
    if image.mode != "P" and (image.mode, bits) != ("L", 8):
        raise DatasetError(
            f"{where}: a label of mode {image.mode} with {bits} bits per channel; expected class indices as a palette "
            "PNG (mode P) or 8-bit greyscale (mode L); `fcn import` writes such masks from colours or other values"
        )
    return np.array(image)


def check_label(
    label: NDArray[np.uint8], size: tuple[int, int], num_classes: int, where: str
) -> NDArray[np.int64]:
    """Return how many pixels have each value, (256,) int64; refuse another size and unknown values.

    label: (H, W) uint8; only 0..num_classes-1 and IGNORE_LABEL are accepted.
    size: (height, width) of its photo.
    """
    assert 1 <= num_classes <= IGNORE_LABEL, num_classes
    if label.shape != size:
        raise DatasetError(f"{where}: label is {label.shape}, its image {size} (height, width); {REMEDY}")
    counts = _count_values(label)
    unknown = [value for value in range(num_classes, IGNORE_LABEL) if counts[value]]
    if unknown:
        raise DatasetError(
            f"{where}: label values {and_more(unknown)}; expected 0..{num_classes - 1} or {IGNORE_LABEL} (void)"
        )
    return counts


def _count_values(label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count by runs of equal values: on real labels this takes a tenth of bincount's time."""
    flat = label.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(starts, append=flat.size)
    return np.bincount(flat[starts], lengths, minlength=256).astype(np.int64)


@cache
def voc_palette() -> NDArray[np.uint8]:
    """Return VOC's colour map, (256, 3) uint8 RGB: a label's bits dealt out to R, G and B, high bits first."""
    palette = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for step in range(8):
        for channel in range(3):
            bit = (index >> (3 * step + channel)) & 1
            palette[:, channel] |= (bit << (7 - step)).astype(np.uint8)
    palette.setflags(write=False)  # shared by all callers
    return palette
