"""Photos: JPEG bytes stay as they are, everything else becomes an upright 8-bit RGB PNG without loss."""

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import DatasetError
from pipeline.inspection.same_picture import reduce
from pipeline.shards.images import MAX_PIXELS, bits_per_sample, exif_orientation

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


class Photo(NamedTuple):
    """A decoded photo as its file stores it.

    data: the file's bytes.
    image: the pixels; of a JPEG in grey and reduced, as `same_picture.reduce` decodes it. Those of a TIFF are turned as
        its EXIF states, because Pillow does so; all others are as stored.
    mode: Pillow's, of the file.
    size: (height, width) as stored.
    orientation: EXIF's, 1 to 8.
    """

    data: bytes
    image: Image.Image
    mode: str
    size: tuple[int, int]
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as viewers show it."""
        height, width = self.size
        return (width, height) if self.orientation in TRANSPOSED else (height, width)


def decode(data: bytes, where: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode every pixel of an image of at most MAX_PIXELS pixels; DatasetError if that fails.

    where: the file's name in messages.
    formats: those accepted, as Pillow names them.
    """
    with _opened(data, where, formats) as image:
        image.load()
    return image


@contextmanager
def _opened(data: bytes, where: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Give an image of at most MAX_PIXELS pixels; DatasetError if opening or decoding it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=formats)
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(
                    f"{where}: {image.width} x {image.height} pixels, more than {MAX_PIXELS}; make it smaller"
                )
            if image.format == "PNG":
                _check_chunks(data)
            yield image
    except DatasetError:
        raise
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"{where}: not a readable {', '.join(formats)} file, it begins with {data[:8]!r}; export it again"
        ) from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{where}: {error}; make it smaller") from error
    except Exception as error:  # damage raises OSError, SyntaxError, ValueError, zlib.error or struct.error
        raise DatasetError(f"{where}: damaged image ({error}); export or copy it again") from error


def _check_chunks(png: bytes) -> None:
    """Check every chunk's checksum and the end mark; Pillow's load() stops at the last pixel."""
    view, start, kind = memoryview(png), 8, b""
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(view[start : start + 4])
        kind = bytes(view[start + 4 : start + 8])
        if end > len(png) or len(kind) < 4:
            raise ValueError("cut off")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ValueError(f"wrong checksum of the chunk {kind!r}")
        start = end


def read_photo(data: bytes, where: str) -> Photo:
    """Decode a photo of any of FORMATS."""
    with _opened(data, where, FORMATS) as image:
        mode, size, orientation = image.mode, (image.height, image.width), exif_orientation(image)
        if image.format == "TIFF" and orientation in TRANSPOSED:  # Pillow gives the turned size already
            size = (image.width, image.height)
        # A JPEG's coefficients are all read, so that damage shows, but fewer pixels are made of them
        reduce(image)
        image.load()
    num_frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise DatasetError(f"{where}: {num_frames} pictures in one file; save each as a file")
    return Photo(data, image, mode, size, orientation if orientation in range(1, 9) else 1)


def finished(
    photo: Photo, *, turn: bool, value_range: tuple[float, float] | None, where: str
) -> tuple[bytes, str, list[str]]:
    """Return a photo's bytes for images/, their suffix and the names of the conversions.

    turn: whether to turn the pixels as EXIF states.
    value_range: the values of 16-bit and float photos that become 0 and 255; None refuses such photos.
    """
    image = photo.image
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and not turn:
        notes = {"L": ["greyscale JPEG kept"], "CMYK": ["CMYK JPEG kept"]}.get(photo.mode, [])
        return photo.data, ".jpg", notes
    if is_jpeg:
        image = decode(photo.data, where)
        notes = ["turned by EXIF, saved as PNG"]
    else:
        notes = [] if image.format == "PNG" else [f"{image.format} saved as PNG"]
    converted, note = _as_rgb(image, photo.data, value_range, where)
    notes += [note] if note else []
    if turn:
        converted = converted if image.format == "TIFF" else _turned(converted, photo.orientation)
        notes = [*notes, "turned by EXIF"] if not is_jpeg else notes
    if image.format == "PNG" and not note and not turn:
        return photo.data, ".png", notes
    clean = Image.fromarray(np.asarray(converted))
    file = io.BytesIO()
    clean.save(file, "PNG", compress_level=1)
    return file.getvalue(), ".png", notes


def turned_label(label: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a label that was drawn on the stored pixels, (H, W) uint8, as EXIF turns its photo."""
    return np.asarray(_turned(Image.fromarray(label), orientation))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def has_deep_colours(image: Image.Image, data: bytes) -> bool:
    """Return whether an image has colours of more than 8 bits a channel, which Pillow would cut off in silence."""
    if image.format == "PNG":
        return data[24] == 16 and data[25] != 0  # IHDR: bit depth and colour type
    return image.mode not in DEEP_MODES and bits_per_sample(image) > 8


def _as_rgb(
    image: Image.Image, data: bytes, value_range: tuple[float, float] | None, where: str
) -> tuple[Image.Image, str]:
    """Return an RGB image and what was done for it, "" if nothing."""
    if has_deep_colours(image, data):
        raise DatasetError(
            f"{where}: a colour {image.format} with more than 8 bits per channel; save it with 8 bits per channel"
        )
    if image.mode in DEEP_MODES:
        if value_range is None:
            low, high = np.asarray(image).min(), np.asarray(image).max()
            raise DatasetError(
                f"{where}: 16-bit or float photo (mode {image.mode}) with values {low:g} to {high:g}; give "
                "--range LO HI, the values that become black and white"
            )
        low, high = value_range
        scaled = (np.asarray(image, np.float64) - low) * (255 / (high - low))
        grey = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), f"scaled from {low:g}..{high:g}"
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB"), "transparent, laid on white"
    names = {"L": "greyscale", "1": "black and white", "P": "palette", "CMYK": "CMYK"}
    return image.convert("RGB"), f"{names.get(image.mode, image.mode)} saved as RGB"
