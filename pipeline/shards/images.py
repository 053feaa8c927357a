"""Photos and label files: decoding within limits, and the checks that a photo passes before it becomes a sample.

A file that cannot be used raises DatasetError. Its message starts with `where`, the caller's name for the file.
shards/write.py collects these errors and either refuses the split or leaves the photos out.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import DatasetError

MAX_PIXELS = 2**26  # 67 million, an 8-bit label of 64 MiB; lower than Pillow's own limit, which only warns
MAX_BYTES = 2**27  # of one file, or of its uncompressed content; holds any image of MAX_PIXELS
REMEDY = "run `dvc repro -f download`, or check data.source"
# A photo's member of a shard: the JPEG file itself, or a PNG of the same pixels
JPG, PNG = "jpg", "image.png"
LOSSLESS = ("PNG", "TIFF", "WEBP", "BMP")  # formats beside JPEG whose photos are kept, pixel for pixel

_JPEG_START = b"\xff\xd8\xff"
_BITS_PER_SAMPLE = 258  # a tag of TIFF


class Photo(NamedTuple):
    """A photo as its shard holds it, and the properties that the manifest records.

    member: JPG or PNG.
    data: the member's bytes: a JPEG file, or an 8-bit PNG of mode RGB or L.
    size: (height, width) in pixels.
    mode: the colours of the user's file as Pillow names them: RGB, L, CMYK, P, RGBA ...; with an A if transparent.
    pixel_sha256: sha256 of height, width and RGB pixels, equal for the same image under another name or header.
    """

    member: str
    data: bytes
    size: tuple[int, int]
    mode: str
    pixel_sha256: bytes


def check_photo(data: bytes, where: str) -> Photo:
    """Decode a photo's file in full; refuse one that is damaged, turned, too large or of more than 8 bits a channel.

    The content decides the format, not the name. The bytes of a JPEG stay as they are. Any other photo becomes a PNG
    of the same pixels; transparent ones are laid on white. An EXIF orientation other than 1 is refused: viewers turn
    such a photo, training does not, and the label may fit either.
    """
    is_jpeg = is_jpeg_file(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # viewers ignore EXIF that Pillow cannot read
        image = decode_image(data, "JPEG" if is_jpeg else LOSSLESS, where)
        # Pillow turns the pixels of a TIFF, and removes the tag, when it decodes them
        header = image if is_jpeg else Image.open(io.BytesIO(data), formats=LOSSLESS)
        orientation = exif_orientation(header)
    if orientation != 1:
        raise DatasetError(
            f"{where}: EXIF orientation {orientation}, expected 1 or none; turn the pixels to match "
            "the label and remove the tag"
        )
    if is_jpeg:
        return Photo(JPG, data, (image.height, image.width), image.mode, _pixel_sha256(image))
    mode = image.mode
    if image.has_transparency_data:
        mode = {"L": "LA", "P": "PA", "RGB": "RGBA"}.get(mode, mode)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    elif mode not in ("RGB", "L"):
        image = image.convert("L" if mode == "1" else "RGB")
    is_kept = (
        image.format == "PNG" and data[24] == 8
    )  # the bit depth of IHDR; format: None after a conversion
    png = data if is_kept else _encode_png(image)
    return Photo(PNG, png, (image.height, image.width), mode, _pixel_sha256(image))


def exif_orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 without one; of a TIFF before it is decoded."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises SyntaxError, struct.error ...; viewers ignore it
        return 1


def is_jpeg_file(data: bytes | memoryview | bytearray) -> bool:
    return bytes(data[: len(_JPEG_START)]) == _JPEG_START


def _pixel_sha256(image: Image.Image) -> bytes:
    digest = hashlib.sha256(f"{image.height} {image.width} ".encode())
    digest.update((image if image.mode == "RGB" else image.convert("RGB")).tobytes())
    return digest.digest()


def _encode_png(image: Image.Image) -> bytes:
    """Return a PNG of pixels alone. Z_RLE gives the same bytes on every machine, see labels.encode_label."""
    file = io.BytesIO()
    bare = image.copy()
    bare.info = {}  # else colour profile and transparency would follow
    bare.save(file, "PNG", compress_type=3)
    return file.getvalue()


def decode_image(data: bytes, formats: str | Sequence[str], where: str) -> Image.Image:
    """Decode every pixel of an image file of at most MAX_PIXELS pixels; DatasetError if that fails.

    data: the file's bytes.
    formats: the formats accepted: "JPEG", "PNG" for a label, or several for a photo, which must have 8 bits.
    where: the file's name in messages.
    """
    accepted = [formats] if isinstance(formats, str) else list(formats)
    kind = " or ".join(accepted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=accepted)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if len(accepted) > 1:
                _refuse_deep_or_several(image, data, where)
            if image.format == "PNG":  # load() checks neither the last checksums nor the end mark
                image.verify()  # leaves the image unusable
                image = Image.open(io.BytesIO(data), formats=accepted)
            image.load()
    except DatasetError:
        raise
    except UnidentifiedImageError as error:
        if kind == "JPEG":
            raise DatasetError(
                f"{where}: a JPEG whose header is damaged or of an unsupported kind (12 bits, lossless); save it "
                f"again as 8-bit JPEG, or {REMEDY}"
            ) from error
        if kind == "PNG" and is_jpeg_file(data):
            raise DatasetError(
                f"{where}: a JPEG, which changes label values; save the mask as PNG from the annotation tool"
            ) from error
        expected = kind if kind == "PNG" else f"JPEG or {kind}"
        raise DatasetError(f"{where}: not a {expected}, it begins with {data[:8]!r}; {REMEDY}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: {error}: more than {MAX_PIXELS} pixels are refused") from error
    except Exception as error:  # damage raises OSError, SyntaxError, ValueError, zlib.error or struct.error
        raise DatasetError(f"{where}: damaged {kind}: {error}; {REMEDY}") from error
    return image


def bits_per_sample(image: Image.Image) -> int:
    """Return the bits a channel that a TIFF's header states; 1 of other formats."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return max(tags.get(_BITS_PER_SAMPLE, (1,)))


def _refuse_deep_or_several(image: Image.Image, data: bytes, where: str) -> None:
    """Refuse a photo that 8 bits cannot hold, some of which Pillow would cut off silently, and a file of several."""
    deep = image.mode.startswith(("I", "F"))
    if image.format == "PNG":
        deep |= data[24] > 8  # of IHDR; Pillow halves 16-bit colours
    deep |= bits_per_sample(image) > 8
    if deep:
        raise DatasetError(
            f"{where}: a {image.format} of mode {image.mode} with more than 8 bits a channel; scale it to 8 bits, or "
            "state the range that becomes 0..255: `fcn import --range LOW HIGH`"
        )
    if (number := getattr(image, "n_frames", 1)) > 1:
        raise DatasetError(f"{where}: a {image.format} of {number} pictures; save the one that the mask fits")
