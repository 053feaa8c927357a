"""Photos of users: found by file, folder, pattern or list, and validated as they are decoded."""

import glob
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.datasets.names import is_left_behind
from pipeline.errors import PhotoError, PhotoFormatError, PhotoSizeError, UserError
from pipeline.shards.images import MAX_PIXELS

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # not EPS and the like, which start other programs
SUFFIXES = (
    ".bmp",
    ".gif",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)  # of the photos in a folder
STDIN = "-"
DEEP_MODES = ("I", "F")  # Pillow would clip their pixels at 255


def find_photos(inputs: Sequence[str], stdin: Iterable[str]) -> list[Path]:
    """Return the photos that the inputs name, in their order, each once. A named file need not exist.

    inputs: files; folders, whose photos are taken but not those of their folders; patterns with *, ** or ?, unless a
        file has that exact name; "-" for a list of files on stdin.
    stdin: one path per line.

    Raises UserError if a folder, pattern or list gives none, or a folder cannot be read.
    """
    return list(dict.fromkeys(path for text in inputs for path in _photos_of(text, stdin)))


def other_files(inputs: Sequence[str]) -> list[Path]:
    """Return the files in folders that `find_photos` does not take, without those that systems leave behind."""
    folders = [Path(text) for text in dict.fromkeys(inputs) if text != STDIN and os.path.isdir(text)]
    files = [file for folder in folders for file in _files(folder)]
    return [file for file in files if file.is_file() and file.suffix.lower() not in SUFFIXES]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_left_behind(Path(path.name)))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); give a folder of photos") from None


def _photos_of(text: str, stdin: Iterable[str]) -> list[Path]:
    path = Path(text)
    if text == STDIN:
        photos = [Path(line.rstrip("\r\n")) for line in stdin if line.strip()]
    elif os.path.isdir(path):  # unlike Path.is_dir, false for a name that is too long
        photos = [file for file in _files(path) if file.suffix.lower() in SUFFIXES]
    elif glob.has_magic(text) and not os.path.exists(path):
        photos = [Path(match) for match in sorted(glob.glob(text, recursive=True)) if Path(match).is_file()]
    else:
        photos = [path]
    if not photos:
        raise UserError(
            f"{text}: no photo there; expected a file, a folder with {', '.join(SUFFIXES)}, a pattern or a list"
        )
    return photos


def read_photo(path: Path) -> Image.Image:
    """Return the photo of a file; see `decode_photo`. Also raises UserError if the file is missing or unreadable."""
    try:
        with path.open("rb") as file:
            return decode_photo(file, str(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give the path of a photo") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def decode_photo(file: IO[bytes], name: str) -> Image.Image:
    """Return the photo in RGB, turned by its EXIF orientation.

    Transparent pixels become white; of an animation, the first frame is taken.

    name: of the photo, for messages.

    Raises PhotoFormatError for other formats, PhotoSizeError above MAX_PIXELS, and PhotoError for damage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of EXIF that Pillow cannot read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"more than {MAX_PIXELS} pixels")
                if image.mode.startswith(DEEP_MODES):
                    reason = f"mode {image.mode}, grey of more than 8 bits; save it with 8"
                    raise PhotoFormatError(f"{name} cannot be read as an image: {reason}")
                return _upright_rgb(image)
    except UnidentifiedImageError:
        raise PhotoFormatError(f"{name} is not an image of a known format: {', '.join(FORMATS)}") from None
    except PhotoError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PhotoSizeError(f"{name} cannot be read as an image: {error}") from error
    except Exception as error:  # damage is OSError, SyntaxError, ValueError, struct.error
        raise PhotoError(f"{name} cannot be read as an image: {error}") from error


def _upright_rgb(file: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(file)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
