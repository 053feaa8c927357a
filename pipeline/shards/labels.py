"""The files a data set is made of: id lists, JPEG images and label PNGs, each read with suspicion.

Every error is a DatasetError that starts with `where`, the caller's words for what is being read.
"""

import hashlib
import io
import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError

MAX_PIXELS = 2**26  # 67 million, an 8-bit label of 64 MiB; lower than Pillow's own limit, which only warns
MAX_BYTES = 2**27  # of one file, or of what a compressed one unpacks to; holds any image of MAX_PIXELS
REMEDY = "run `dvc repro -f download`, or check data.source"

_JPEG_START = b"\xff\xd8\xff"
_KEY = re.compile(r"[A-Za-z0-9_-]+")  # a key names files and tar members: no '.', no '/', nothing to escape


def require_folder(root: Path, name: str) -> None:
    """Refuses a data set that is not there at all."""
    if not root.is_dir():
        raise DatasetError(f"{name}: no data folder {root}; {REMEDY}")


def check_key(key: str, where: str) -> None:
    """Refuses an id that cannot name a file in every place it has to."""
    if not _KEY.fullmatch(key):
        raise DatasetError(f"{where}: malformed id {key!r}; expected letters, digits, '_' and '-' only")


def read_ids(folder: Path, split: str, name: str) -> list[str]:
    """The ids of folder/<split>.txt in the file's order, one per line, each once."""
    path = folder / f"{split}.txt"
    if Path(split).name != split or not path.is_file():
        lists = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        raise DatasetError(f"{name}: no list {split!r} in {folder}; lists there: {lists}")
    try:
        lines = read_bytes(path, f"{name} {split}").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name} {split}: {path} is not a text file: {error}; {REMEDY}") from error
    ids = [line.rstrip(" \t") for line in lines]
    if not any(ids):
        raise DatasetError(f"{name} {split}: {path} lists no ids; {REMEDY}")
    for number, key in enumerate(ids, start=1):
        check_key(key, f"{name} {split}: {path}, line {number}")
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DatasetError(f"{name} {split}: {path} lists more than once: {some(repeated)}; {REMEDY}")
    return ids


def read_bytes(path: Path, where: str) -> bytes:
    """The whole file, if it is there and not absurdly large."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"{where}: {path} has {size} bytes, more than {MAX_BYTES}; {REMEDY}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{where}: {path} is missing; {REMEDY}") from error
    except OSError as error:
        raise DatasetError(f"{where}: {path} cannot be read: {error.strerror}") from error


class Photo(NamedTuple):
    """size: (height, width).   mode: the colours as Pillow names them, RGB, L or CMYK.

    pixel_sha256: of height, width and the RGB pixels that nets see, so that an image is known again under another
    name or header.
    """

    size: tuple[int, int]
    mode: str
    pixel_sha256: bytes


def examine(jpeg: bytes, where: str) -> Photo:
    """Decodes a JPEG in full, the one time that a pipeline does before training.

    Greyscale and CMYK are accepted: whoever decodes for training asks for RGB. An EXIF orientation other
    than 1 is refused: viewers turn such an image, training does not, and nobody can say which the label fits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # EXIF that Pillow cannot read turns no viewer's image
        image = _decoded(jpeg, "JPEG", where)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:
        raise DatasetError(
            f"{where}: EXIF orientation {orientation}, expected 1 or none; turn the pixels to match "
            "the label and remove the tag"
        )
    digest = hashlib.sha256(f"{image.height} {image.width} ".encode())
    digest.update((image if image.mode == "RGB" else image.convert("RGB")).tobytes())
    return Photo((image.height, image.width), image.mode, digest.digest())


def encode_label(label: NDArray[np.uint8]) -> bytes:
    """label: (H, W) uint8, any value -> PNG whose 8-bit palette indices are the label, coloured as VOC does.

    The same label gives the same bytes on every machine: Z_RLE finds matches without zlib's tuning tables,
    so zlib and zlib-ng agree. All 256 colours are written, or Pillow would pack the pixels into fewer bits.
    """
    assert label.dtype == np.uint8, label.dtype
    assert label.ndim == 2, label.shape
    image = Image.fromarray(label)
    image.putpalette(voc_palette().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_type=3)  # zlib.Z_RLE
    return file.getvalue()


def is_label_png(data: bytes) -> bool:
    """Whether it begins as what encode_label and VOC itself write: 8-bit palette indices in VOC's colours."""
    kind, palette = (
        data[24:29],
        data[37 : 41 + 768],
    )  # of IHDR, always the first chunk, and of the one behind it
    return kind == b"\x08\x03\0\0\0" and palette == b"PLTE" + voc_palette().tobytes()


def decode_label(png: bytes, where: str = "label") -> NDArray[np.uint8]:
    """(H, W) uint8 values of a palette PNG (any bit depth) or an 8-bit greyscale PNG, never their colours.

    Pillow only: torchvision's PNG decoder crashes the process on a damaged file and misreads short indices.
    """
    image = _decoded(png, "PNG", where)
    bits = png[24]  # IHDR, the first chunk; Pillow stretches 2- and 4-bit greyscale to 0..255
    if image.mode != "P" and (image.mode, bits) != ("L", 8):
        raise DatasetError(
            f"{where}: a label of mode {image.mode} with {bits} bits per channel; save class indices, not "
            "colours, as a palette PNG (mode P) or 8-bit greyscale (mode L)"
        )
    return np.array(image)


def check_label(
    label: NDArray[np.uint8], size: tuple[int, int], num_classes: int, where: str
) -> NDArray[np.int64]:
    """(256,) int64, the pixels of each value, none of them but 0..num_classes-1 and IGNORE_LABEL.

    Refuses any other value, and a label that has not its image's (height, width).
    """
    assert 1 <= num_classes <= IGNORE_LABEL, num_classes
    if label.shape != size:
        raise DatasetError(f"{where}: label is {label.shape}, its image {size} (height, width); {REMEDY}")
    counts = _counts(label)
    unknown = [value for value in range(num_classes, IGNORE_LABEL) if counts[value]]
    if unknown:
        raise DatasetError(
            f"{where}: label values {some(unknown)}; expected 0..{num_classes - 1} or {IGNORE_LABEL} (void)"
        )
    return counts


def _counts(label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256,) the pixels of each value, by runs of equal ones: of real labels a tenth of bincount's time."""
    flat = label.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(starts, append=flat.size)
    return np.bincount(flat[starts], lengths, minlength=256).astype(np.int64)


@cache
def voc_palette() -> NDArray[np.uint8]:
    """(256, 3) uint8 RGB: the VOC colour map, which deals a label's bits out to R, G, B, high bits first."""
    palette = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for step in range(8):
        for channel in range(3):
            bit = (index >> (3 * step + channel)) & 1
            palette[:, channel] |= (bit << (7 - step)).astype(np.uint8)
    palette.setflags(write=False)  # shared by every caller
    return palette


def _decoded(data: bytes, kind: str, where: str) -> Image.Image:
    """Every pixel of a JPEG or PNG decoded, or the reason why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if kind == "PNG":  # load() does not look at the checksums behind the last pixel, nor for an end
                image.verify()  # and uses the image up
                image = Image.open(io.BytesIO(data), formats=[kind])
            image.load()
    except UnidentifiedImageError as error:
        if kind == "JPEG" and data.startswith(_JPEG_START):
            raise DatasetError(
                f"{where}: a JPEG whose header is damaged or of a kind not read here (12 bits, lossless); save it "
                f"anew as 8-bit JPEG, or {REMEDY}"
            ) from error
        raise DatasetError(f"{where}: not a {kind}, it begins with {data[:8]!r}; {REMEDY}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: {error}: more than {MAX_PIXELS} pixels are refused") from error
    except Exception as error:  # damage is OSError, SyntaxError, ValueError, zlib.error, struct.error
        raise DatasetError(f"{where}: damaged {kind}: {error}; {REMEDY}") from error
    return image


def some(values: list) -> str:
    """The first eight values, and how many more there are."""
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return ", ".join(map(str, values[:8])) + more
