"""Photos: JPEG bytes stay, other files lose nothing, and what cannot be kept is refused with the remedy."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pipeline.errors import DatasetError
from pipeline.importing.write import Settings, import_data
from tests.importing.conftest import encoded, jpeg, labels_of, tiff_of_16_bit_colours, write

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
MASK = encoded(np.resize(np.array([0, 1], np.uint8), (12, 16)))


def imported(
    photo: bytes, name: str, tmp_path: Path, mask: bytes = MASK, **settings
) -> tuple[bytes, str, dict]:
    """The written photo's bytes and suffix, and the counts of conversions; a second, plain pair is beside it."""
    files = {f"images/{name}": photo, f"masks/{Path(name).stem}.png": mask}
    write(tmp_path / "in", files | {"images/other.jpg": jpeg(seed=9), "masks/other.png": MASK})
    result = import_data(tmp_path / "in", tmp_path / "out", Settings(**settings))
    (path,) = (path for path in (tmp_path / "out/images").iterdir() if path.stem != "other")
    return path.read_bytes(), path.suffix, result.notes


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.jpeg", "a.jfif", "a.JPE", "a.png"])
def test_a_jpeg_of_any_name_keeps_its_bytes(name: str, tmp_path: Path):
    data, suffix, notes = imported(jpeg(), name, tmp_path)
    assert (data, suffix, notes) == (jpeg(), ".jpg", {})


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_grey_or_cmyk_jpeg_keeps_its_bytes_and_is_counted(mode: str, tmp_path: Path):
    photo = encoded(Image.fromarray(PIXELS).convert(mode), "JPEG")
    data, _, notes = imported(photo, "a.jpg", tmp_path)
    assert data == photo
    assert sum(notes.values()) == 1


def test_an_rgb_png_keeps_its_bytes(tmp_path: Path):
    data, suffix, notes = imported(encoded(PIXELS), "a.png", tmp_path)
    assert (data, suffix, notes) == (encoded(PIXELS), ".png", {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {}),
        ("a.TIFF", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.gif", {}),
    ],
)
def test_other_files_become_png_without_loss(name: str, options: dict, tmp_path: Path):
    kind = {".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}[
        Path(name).suffix.lower()
    ]
    data, suffix, notes = imported(encoded(PIXELS, kind, **options), name, tmp_path)
    assert suffix == ".png"
    np.testing.assert_array_equal(pixels(data), PIXELS)
    assert notes[f"{kind} saved as PNG"] == 1


def test_grey_and_palette_become_rgb(tmp_path: Path):
    grey = Image.fromarray(PIXELS).convert("L")
    data, _, notes = imported(encoded(grey), "a.png", tmp_path / "grey")
    np.testing.assert_array_equal(pixels(data), np.repeat(np.asarray(grey)[:, :, None], 3, 2))
    assert list(notes.values()) == [1]
    palette = Image.fromarray(PIXELS).quantize(20)
    data, _, notes = imported(encoded(palette), "a.png", tmp_path / "palette")
    np.testing.assert_array_equal(pixels(data), np.asarray(palette.convert("RGB")))
    assert list(notes.values()) == [1]


def test_transparent_pixels_become_white(tmp_path: Path):
    alpha = np.full((12, 16), 255, np.uint8)
    alpha[:3] = 0
    data, _, notes = imported(encoded(np.dstack([PIXELS, alpha])), "a.png", tmp_path)
    assert (pixels(data)[:3] == 255).all()
    np.testing.assert_array_equal(pixels(data)[3:], PIXELS[3:])
    assert list(notes) == ["transparent, laid on white"]


DEEP = (PIXELS[:, :, 0].astype(np.uint16) * 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("photo", "name"),
    [
        (encoded(DEEP), "a.png"),
        (encoded(Image.fromarray(DEEP), "TIFF"), "a.tif"),
        (encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "a.tif"),
        (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "a.tif"),
    ],
)
def test_a_deep_photo_needs_a_stated_range(photo: bytes, name: str, tmp_path: Path):
    with pytest.raises(DatasetError, match=rf"images/{name}.*--range") as error:
        imported(photo, name, tmp_path / "refused")
    assert f"{DEEP.min()} to {DEEP.max()}" in str(error.value)
    data, suffix, notes = imported(photo, name, tmp_path / "taken", value_range=(0, 4080))
    assert suffix == ".png"
    np.testing.assert_array_equal(pixels(data)[:, :, 1], PIXELS[:, :, 0])
    assert any("scaled" in note for note in notes)


def turned(orientation: int, size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return jpeg(size, exif=exif)


@pytest.mark.parametrize("orientation", range(5, 9))
@pytest.mark.parametrize("is_upright", [True, False])
def test_a_turned_photo_is_turned_with_its_mask_where_sizes_prove_it(
    orientation: int, is_upright: bool, tmp_path: Path
):
    photo = turned(orientation, (12, 16))
    stored = np.random.default_rng(1).integers(0, 2, (12, 16)).astype(np.uint8)
    upright = np.asarray(
        {
            5: lambda a: a.T,
            6: lambda a: np.rot90(a, -1),
            7: lambda a: np.rot90(a, 2).T,
            8: np.rot90,
        }[orientation](stored)
    )
    mask = encoded(np.ascontiguousarray(upright if is_upright else stored))
    data, suffix, notes = imported(photo, "a.jpg", tmp_path, mask)
    assert suffix == ".png"
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(photo)))
    np.testing.assert_array_equal(pixels(data), np.asarray(expected))
    assert Image.open(io.BytesIO(data)).getexif().get(ExifTags.Base.Orientation, 1) == 1
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.jpg"], upright)
    assert list(notes.values()) == [1]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_tiff_is_read_as_a_turned_jpeg_is(orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo = encoded(PIXELS, "TIFF", exif=exif)
    stored = np.random.default_rng(1).integers(0, 2, PIXELS.shape[:2]).astype(np.uint8)
    if orientation < 5:  # the sizes say nothing
        with pytest.raises(DatasetError, match=rf"images/a\.tif.*orientation {orientation}"):
            imported(photo, "a.tif", tmp_path, encoded(stored))
        return
    data, _, _ = imported(photo, "a.tif", tmp_path, encoded(stored))
    as_png = Image.fromarray(PIXELS)
    as_png.getexif()[ExifTags.Base.Orientation] = orientation
    np.testing.assert_array_equal(pixels(data), np.asarray(ImageOps.exif_transpose(as_png)))
    mask = Image.fromarray(stored)
    mask.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(mask))
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.tif"], expected)


def test_a_tiff_of_16_bit_colours_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"images/a\.tif.*8 bits"):
        imported(tiff_of_16_bit_colours(PIXELS), "a.tif", tmp_path)


@pytest.mark.parametrize(("orientation", "size"), [(3, (12, 16)), (2, (12, 16)), (6, (14, 14))])
def test_a_turned_photo_whose_size_proves_nothing_is_refused_with_the_choice(
    orientation: int, size: tuple[int, int], tmp_path: Path
):
    mask = encoded(np.resize(np.array([0, 1], np.uint8), size))
    with pytest.raises(
        DatasetError, match=rf"images/a\.jpg.*orientation {orientation}.*turn.*remove the tag"
    ):
        imported(turned(orientation, size), "a.jpg", tmp_path, mask)
