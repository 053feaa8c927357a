"""Photos of other formats than JPEG: kept without loss from the user's file through shards to the net."""

import hashlib
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.errors import DatasetError, ShardError
from pipeline.inspection.describe import describe
from pipeline.shards import manifest
from pipeline.shards.dataset import Dataset
from pipeline.shards.images import JPG, PNG, check_photo
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import all_damage, open_shards
from pipeline.shards.sample import Sample
from tests.small_shards import KEYS, draw, files_in, write

NOISE = np.random.default_rng(5).integers(0, 256, (9, 14, 4), np.uint8)
LOSSLESS = {  # by Pillow's name of the format: what keeps its pixels
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True, "exact": True},
    "BMP": {},
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def picture(mode: str) -> Image.Image:
    return Image.fromarray(NOISE[..., :3]).convert(mode)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_photo_of_another_format_is_kept_to_the_pixel(kind: str):
    data = encoded(picture("RGB"), kind, **LOSSLESS[kind])
    photo = check_photo(data, "image")
    assert (photo.member, photo.size, photo.mode) == (PNG, (9, 14), "RGB")
    assert np.array_equal(rgb_of(photo.data), NOISE[..., :3])
    pixels = b"9 14 " + NOISE[..., :3].tobytes()
    assert photo.pixel_sha256 == hashlib.sha256(pixels).digest()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("L", "1", "P")),
        *(("TIFF", mode) for mode in ("L", "1", "P", "CMYK")),
        *(("BMP", mode) for mode in ("L", "1", "P")),
    ],
)
def test_grey_palette_and_cmyk_become_what_a_png_of_rgb_or_grey_can_hold(kind: str, mode: str):
    data = encoded(picture(mode), kind)
    photo = check_photo(data, "image")
    with Image.open(io.BytesIO(photo.data)) as stored:
        assert (stored.format, stored.mode) == ("PNG", "L" if mode in ("L", "1") else "RGB")
    assert photo.mode == mode
    assert np.array_equal(rgb_of(photo.data), rgb_of(data))


def on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_transparent_photo_is_laid_on_white(kind: str):
    photo = check_photo(encoded(Image.fromarray(NOISE), kind, **LOSSLESS[kind]), "image")
    assert photo.mode == "RGBA"
    assert np.abs(rgb_of(photo.data) - on_white(NOISE)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "clear", "name"), [("P", 0, "PA"), ("L", 7, "LA"), ("RGB", (1, 2, 3), "RGBA")]
)
def test_a_colour_that_is_declared_transparent_becomes_white(mode: str, clear: object, name: str):
    image = Image.new(mode, (4, 3), clear)  # pyright: ignore[reportArgumentType]
    photo = check_photo(encoded(image, "PNG", transparency=clear), "image")
    assert photo.mode == name
    assert (rgb_of(photo.data) == 255).all()


def test_the_bytes_of_a_jpeg_and_of_an_eight_bit_png_stay_as_they_are():
    for kind, member in (("JPEG", JPG), ("PNG", PNG)):
        for mode in ("RGB", "L"):
            data = encoded(picture(mode), kind)
            assert (check_photo(data, "image").data, check_photo(data, "image").member) == (data, member)


def sixteen_bit_rgb_png() -> bytes:
    """Return what Pillow cannot write: 2 x 1 pixels of 16-bit RGB."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"\0" + bytes(12))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def sixteen_bit_rgb_tiff() -> bytes:
    """Return what Pillow cannot write: 1 x 1 pixel of 16-bit RGB."""
    # tag, type (3: 16 bits, 4: 32 bits), count, value; the three depths lie behind the directory
    tags = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 6)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + bytes(6)


DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(DEEP), "PNG"),
        encoded(Image.fromarray(DEEP), "TIFF"),
        encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        sixteen_bit_rgb_png(),
        sixteen_bit_rgb_tiff(),
    ],
    ids=["grey PNG", "grey TIFF", "float TIFF", "32-bit TIFF", "RGB PNG", "RGB TIFF"],
)
def test_a_photo_of_more_than_8_bits_is_refused_and_never_cut_off(data: bytes):
    with pytest.raises(DatasetError, match=r"^own x: x\.tif: .*8 bits.*`fcn import --range"):
        check_photo(data, "own x: x.tif")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_photo_that_viewers_turn_is_refused_in_any_format(kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(DatasetError, match=r"^image: EXIF orientation 6"):
        check_photo(encoded(picture("RGB"), kind, exif=exif, **LOSSLESS[kind]), "image")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_file_of_several_pictures_is_refused_with_their_number(kind: str):
    others = [Image.new("RGB", (14, 9), shade) for shade in ("red", "blue")]
    data = encoded(picture("RGB"), kind, save_all=True, append_images=others)
    with pytest.raises(DatasetError, match="3 pictures"):
        check_photo(data, "image")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_photo_cut_short_is_refused_in_any_format(kind: str):
    data = encoded(picture("RGB"), kind, **LOSSLESS[kind])
    for keep in (20, len(data) // 2, len(data) - 30):
        with pytest.raises(DatasetError, match=r"^own x: "):
            check_photo(data[:keep], "own x")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_photo_with_changed_bytes_is_refused_or_decoded_and_never_fails_otherwise(kind: str):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "a photo"
    options = LOSSLESS[kind] if kind == "BMP" else LOSSLESS[kind] | {"exif": exif}
    data = encoded(picture("RGB"), kind, **options)
    random = np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(data)
        for position in random.integers(0, min(len(data), 500), random.integers(1, 4)):
            damaged[position] = random.integers(256)
        try:
            photo = check_photo(bytes(damaged), "image")
        except DatasetError:
            continue
        assert rgb_of(photo.data).shape == (*photo.size, 3)
    # Pillow cannot parse these EXIF data, and says so by a SyntaxError
    if kind == "WEBP":
        assert check_photo(data.replace(b"MM\0*", b"M_\0*"), "image").size == (9, 14)


# --- in shards


def draw_mixed(key: str) -> Sample:
    """Return the sample of `draw`, every second one with its photo as PNG, TIFF or BMP."""
    sample, number = draw(key), int(key[-1])
    if number % 2:
        return sample
    with Image.open(io.BytesIO(sample.image)) as photo:
        return Sample.checked(
            key, encoded(photo.convert("RGB"), ("PNG", "TIFF", "BMP")[number % 3]), sample.label
        )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mixed") / "train", load=draw_mixed)


def test_a_split_of_jpegs_keeps_the_format_that_earlier_versions_read(tmp_path: Path):
    table = pq.read_table(write(tmp_path / "train") / MANIFEST)
    assert b'"format": "fcn-shards/1"' in table.schema.metadata[b"fcn"]
    assert table.schema.names == manifest.SCHEMA.names


def test_shards_of_mixed_photos_give_every_photo_back(mixed: Path):
    shards = open_shards(mixed)
    assert shards.header["format"] == "fcn-shards/2"
    dataset = Dataset(shards)
    for index, key in enumerate(shards.keys):
        sample = draw_mixed(key)
        assert [bytes(data) for data in shards.read(index)] == [sample.image, sample.png]
        batch = dataset[index]
        assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), rgb_of(draw(key).image))
        assert np.array_equal(batch.label[0].numpy(), sample.label)
    photos = {row["key"]: row["photo"] for row in shards.table.to_pylist()}
    assert photos == {key: JPG if int(key[-1]) % 2 else PNG for key in KEYS}
    assert describe(shards)["conversions"] == {}


def test_shards_of_mixed_photos_are_the_same_when_written_again(mixed: Path, tmp_path: Path):
    assert files_in(write(tmp_path / "train", load=draw_mixed)) == files_in(mixed)


def test_damage_of_a_png_photo_is_named(mixed: Path, tmp_path: Path):
    folder = tmp_path / "train"
    folder.mkdir()
    for name, data in files_in(mixed).items():
        (folder / name).write_bytes(data)
    shards = open_shards(folder)
    row = next(row for row in shards.table.to_pylist() if row["photo"] == PNG)
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["jpg_offset"] + 3] ^= 1
    path.write_bytes(data)
    name = f"{row['key']}.image.png"
    assert any(line.endswith(f"samples damaged: {name}") for line in all_damage(folder))
    with pytest.raises(ShardError, match=re.escape(name)):
        shards.read(shards.keys.index(row["key"]))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset 1.0.2 leaves its files open
def test_plain_webdataset_reads_mixed_photos(mixed: Path):
    """As docs/shards.md shows it."""
    urls = [str(path) for path in sorted(mixed.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == open_shards(mixed).keys
    for sample in samples:
        file = sample.get("jpg") or sample["image.png"]
        photo = np.array(Image.open(io.BytesIO(file)).convert("RGB"))
        label = np.array(Image.open(io.BytesIO(sample["png"])))
        assert np.array_equal(photo, rgb_of(draw(sample["__key__"]).image))
        assert np.array_equal(label, draw(sample["__key__"]).label)
