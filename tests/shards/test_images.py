"""pipeline/shards/images.py: photos that are accepted, and those that are refused."""

import io
import re
import struct

import pytest
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.shards.images import MAX_PIXELS, check_photo

START_OF_FRAME = b"\xff\xc0"


def jpeg(mode: str = "RGB", size: tuple[int, int] = (20, 10), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 77).save(file, "JPEG", **options)
    return file.getvalue()


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return jpeg(exif=exif)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_colour_greyscale_and_cmyk_jpegs_are_accepted(mode: str, options: dict):
    photo = check_photo(jpeg(mode, **options), "image")
    assert (photo.size, photo.mode) == ((10, 20), mode)


def test_a_jpeg_of_one_pixel_is_accepted():
    assert check_photo(jpeg(size=(1, 1)), "image").size == (1, 1)


@pytest.mark.parametrize("keep", [2, 3, 50, 200, -2, -1])
def test_a_jpeg_cut_short_is_refused(keep: int):
    with pytest.raises(DatasetError, match=r"^sbd 7: i\.jpg: .*JPEG"):
        check_photo(jpeg()[:keep], "sbd 7: i.jpg")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"GIF89a"])
def test_a_file_of_another_format_is_refused_with_its_first_bytes(data: bytes):
    with pytest.raises(DatasetError, match=re.escape(repr(data[:8]))):
        check_photo(data, "image")


def test_a_jpeg_of_twelve_bits_is_refused():
    data = bytearray(jpeg())
    data[data.index(START_OF_FRAME) + 4] = 12
    with pytest.raises(DatasetError, match=r"^image: .*12 bits"):
        check_photo(bytes(data), "image")


@pytest.mark.parametrize("value", range(2, 9))
def test_a_jpeg_that_viewers_turn_is_refused_with_its_orientation(value: int):
    with pytest.raises(DatasetError, match=f"EXIF orientation {value}, expected 1"):
        check_photo(with_orientation(value), "image")


@pytest.mark.parametrize(
    "photo",
    [
        with_orientation(1),
        jpeg(exif=b"Exif\0\0not a TIFF header"),
        jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0"),
        jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"),
    ],
)
def test_upright_and_unreadable_exif_is_accepted_without_a_warning(photo: bytes):
    assert check_photo(photo, "image").size == (10, 20)


# Pillow is silent up to 89 million pixels, warns up to 179 million, then raises
@pytest.mark.parametrize("side", [8193, 10_000, 20_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side: int):
    data = bytearray(jpeg())
    start = data.index(START_OF_FRAME) + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    with pytest.raises(DatasetError, match=f"more than {MAX_PIXELS} pixels"):
        check_photo(bytes(data), "image")


def test_the_same_pixels_under_another_header_have_the_same_hash_and_another_size_does_not():
    plain, commented = jpeg("L"), jpeg("L", comment=b"the same again")
    assert plain != commented
    assert check_photo(plain, "7").pixel_sha256 == check_photo(commented, "7").pixel_sha256
    assert check_photo(plain, "7").pixel_sha256 != check_photo(jpeg("L", (10, 20)), "7").pixel_sha256
