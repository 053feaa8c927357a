"""Photos and label files: decoding within limits, and the checks that a photo passes before it becomes a sample.

A file that cannot be used raises DatasetError. Its message starts with `where`, the caller's name for the file.
shards/write.py collects these errors and either refuses the split or leaves the photos out.
"""

import hashlib
import io
import warnings
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import DatasetError

MAX_PIXELS = 2**26  # 67 million, an 8-bit label of 64 MiB; lower than Pillow's own limit, which only warns
MAX_BYTES = 2**27  # of one file, or of its uncompressed content; holds any image of MAX_PIXELS
REMEDY = "run `dvc repro -f download`, or check data.source"

_JPEG_START = b"\xff\xd8\xff"


class Photo(NamedTuple):
    """Properties of a photo that its shard's manifest records.

    size: (height, width) in pixels.
    mode: the colours as Pillow names them: RGB, L or CMYK.
    pixel_sha256: sha256 of height, width and RGB pixels, equal for the same image under another name or header.
    """

    size: tuple[int, int]
    mode: str
    pixel_sha256: bytes


def check_photo(jpeg: bytes, where: str) -> Photo:
    """Decode a JPEG in full and return its properties; refuse one that is damaged, turned or too large.

    Greyscale and CMYK are accepted, because training decodes every photo as RGB. An EXIF orientation other than 1
    is refused: viewers turn such a photo, training does not, and the label may fit either.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # viewers ignore EXIF that Pillow cannot read
        image = decode_image(jpeg, "JPEG", where)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:
        raise DatasetError(
            f"{where}: EXIF orientation {orientation}, expected 1 or none; turn the pixels to match "
            "the label and remove the tag"
        )
    digest = hashlib.sha256(f"{image.height} {image.width} ".encode())
    digest.update((image if image.mode == "RGB" else image.convert("RGB")).tobytes())
    return Photo((image.height, image.width), image.mode, digest.digest())


def decode_image(data: bytes, kind: str, where: str) -> Image.Image:
    """Decode every pixel of an image file of at most MAX_PIXELS pixels; DatasetError if that fails.

    data: the file's bytes.
    kind: the only format accepted, "JPEG" or "PNG".
    where: the file's name in messages.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if kind == "PNG":  # load() checks neither the checksums after the last pixel nor the end mark
                image.verify()  # leaves the image unusable
                image = Image.open(io.BytesIO(data), formats=[kind])
            image.load()
    except UnidentifiedImageError as error:
        if kind == "JPEG" and data.startswith(_JPEG_START):
            raise DatasetError(
                f"{where}: a JPEG whose header is damaged or of an unsupported kind (12 bits, lossless); save it "
                f"again as 8-bit JPEG, or {REMEDY}"
            ) from error
        if kind == "PNG" and data.startswith(_JPEG_START):
            raise DatasetError(
                f"{where}: a JPEG, which changes label values; save the mask as PNG from the annotation tool"
            ) from error
        raise DatasetError(f"{where}: not a {kind}, it begins with {data[:8]!r}; {REMEDY}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: {error}: more than {MAX_PIXELS} pixels are refused") from error
    except Exception as error:  # damage raises OSError, SyntaxError, ValueError, zlib.error or struct.error
        raise DatasetError(f"{where}: damaged {kind}: {error}; {REMEDY}") from error
    return image
