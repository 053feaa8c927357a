"""Photos as people have them: found by file, folder, pattern or list, and read with suspicion."""

import glob
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import PhotoError, PhotoFormatError, PhotoSizeError, UserError
from pipeline.shards.images import MAX_PIXELS

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # no EPS and the like, which start other programs
SUFFIXES = (".bmp", ".gif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")  # what of a folder is a photo
STDIN = "-"
DEEP = ("I", "F")  # modes which Pillow would cut off at 255


def find_photos(inputs: Sequence[str], stdin: Iterable[str]) -> list[Path]:
    """The files that are named, in that order, each once; they need not exist.

    inputs: files; folders, of which every photo is taken, those of folders inside not; patterns with *, ** or ?, if no
    file is called so; "-" for a list of files on stdin, one a line. UserError if a folder or pattern gives none.
    """
    return list(dict.fromkeys(path for one in inputs for path in _found(one, stdin)))


def _found(one: str, stdin: Iterable[str]) -> Iterator[Path]:
    path = Path(one)
    if one == STDIN:
        named = [Path(line.rstrip("\r\n")) for line in stdin if line.strip()]
    elif path.is_dir():
        named = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    elif glob.has_magic(one) and not path.exists():
        named = [Path(match) for match in sorted(glob.glob(one, recursive=True)) if Path(match).is_file()]
    else:
        named = [path]
    if not named:
        raise UserError(
            f"{one}: no photo there; expected a file, a folder with {', '.join(SUFFIXES)}, a pattern or a list"
        )
    yield from named


def read_photo(path: Path) -> Image.Image:
    """What decode_photo gives of a file; UserError if it is missing, too."""
    try:
        with path.open("rb") as file:
            return decode_photo(file, str(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give the path of a photo") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def decode_photo(file: IO[bytes], name: str) -> Image.Image:
    """The photo in RGB, turned as viewers turn it, on white where it is transparent; of a moving one, the first frame.

    name: of the photo, for errors: PhotoFormatError if its format is not read here, PhotoSizeError if it has more than
    MAX_PIXELS, PhotoError if it is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of EXIF that Pillow cannot read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"more than {MAX_PIXELS} pixels")
                if opened.mode.startswith(DEEP):
                    what = f"mode {opened.mode}, grey of more than 8 bits; save it with 8"
                    raise PhotoFormatError(f"{name} cannot be read as an image: {what}")
                return _upright_rgb(opened)
    except UnidentifiedImageError:
        raise PhotoFormatError(f"{name} is no image that can be read; known: {', '.join(FORMATS)}") from None
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
