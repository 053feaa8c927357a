"""pipeline/shards/labels.py: id lists, JPEGs and label PNGs, good and bad."""

import hashlib
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.shards import labels as files
from pipeline.shards.labels import (
    check_key,
    check_label,
    decode_label,
    encode_label,
    examine,
    read_bytes,
    read_ids,
    require_folder,
    voc_palette,
)

# As VOC's development kit tabulates them, background to tvmonitor, then void.
VOC_COLOURS = """0 0 0, 128 0 0, 0 128 0, 128 128 0, 0 0 128, 128 0 128, 0 128 128, 128 128 128,
64 0 0, 192 0 0, 64 128 0, 192 128 0, 64 0 128, 192 0 128, 64 128 128, 192 128 128,
0 64 0, 128 64 0, 0 192 0, 128 192 0, 0 64 128"""
JPEG_SOF0 = b"\xff\xc0"
GREY, PALETTE = 0, 3  # PNG colour types


def jpeg(mode: str = "RGB", size: tuple[int, int] = (20, 10), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 77).save(file, "JPEG", **options)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def hand_made_png(values: np.ndarray, bits: int, colour_type: int) -> bytes:
    """A PNG put together here, because Pillow writes no greyscale of 2 or 4 bits."""
    height, width = values.shape
    rows = b""
    for row in values:
        line = "".join(f"{value:0{bits}b}" for value in row)
        line += "0" * (-len(line) % 8)
        rows += b"\0" + int(line, 2).to_bytes(len(line) // 8, "big")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))]
    if colour_type == PALETTE:
        chunks.append((b"PLTE", bytes(3 * 2**bits)))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def png_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode_label(np.zeros((4, 4), np.uint8)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(jpeg())
    start = data.index(JPEG_SOF0) + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


# --- labels


def test_the_palette_is_the_published_one():
    expected = [[int(value) for value in colour.split()] for colour in VOC_COLOURS.split(",")]
    assert voc_palette()[:21].tolist() == expected
    assert voc_palette()[255].tolist() == [224, 224, 192]
    assert len(np.unique(voc_palette(), axis=0)) == 256


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
@settings(max_examples=60, deadline=None)
def test_a_label_comes_back_from_its_png_as_it_went_in(label: np.ndarray):
    decoded = decode_label(encode_label(label))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, label)


def test_a_label_in_another_memory_order_is_encoded_by_its_values():
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert encode_label(np.asfortranarray(label)) == encode_label(label)
    assert encode_label(label.repeat(2, axis=1)[:, ::2]) == encode_label(label)


def test_an_encoded_label_has_eight_bit_indices_and_all_colours_even_with_one_class():
    data = encode_label(np.zeros((5, 7), np.uint8))
    assert struct.unpack(">IIBB", data[16:26]) == (7, 5, 8, PALETTE)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    assert bytes(image.palette.palette) == voc_palette().tobytes()


def test_an_encoded_label_has_the_same_bytes_everywhere():
    label = (np.add.outer(np.arange(40), np.arange(50)) // 9).astype(np.uint8)
    digest = hashlib.sha256(encode_label(label)).hexdigest()
    assert digest == "640106753acb64f1dbe25bb6c87153f610be75ea9b32555311d75eecb79dd02f"


@pytest.mark.parametrize("label", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8)])
def test_only_a_two_dimensional_uint8_label_is_encoded(label: np.ndarray):
    with pytest.raises(AssertionError):
        encode_label(label)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_png_of_any_bit_depth_gives_its_indices(bits: int):
    label = (np.arange(35).reshape(5, 7) % 2**bits).astype(np.uint8)
    assert np.array_equal(decode_label(hand_made_png(label, bits, PALETTE)), label)


def test_a_greyscale_png_of_eight_bits_gives_its_values():
    label = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert np.array_equal(decode_label(hand_made_png(label, 8, GREY)), label)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_greyscale_png_of_fewer_bits_is_refused_because_pillow_stretches_it(bits: int):
    label = np.ones((5, 7), np.uint8)
    with pytest.raises(DatasetError, match=f"mode L with {bits} bits"):
        decode_label(hand_made_png(label, bits, GREY))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (4, 4)), "mode RGB with 8 bits"),
        (Image.new("RGBA", (4, 4)), "mode RGBA with 8 bits"),
        (Image.new("LA", (4, 4)), "mode LA with 8 bits"),
        (Image.new("1", (4, 4)), "mode 1 with 1 bits"),
        (Image.fromarray(np.ones((4, 4), np.uint16)), "mode I;16 with 16 bits"),
    ],
)
def test_a_mask_that_holds_no_indices_is_refused_with_its_mode_and_the_remedy(
    image: Image.Image, reason: str
):
    with pytest.raises(DatasetError, match=rf"^voc 7: m\.png: .*{re.escape(reason)}.*indices") as error:
        decode_label(png(image), "voc 7: m.png")
    assert "palette" in str(error.value)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_png_with_a_flipped_bit_is_refused_or_still_the_same_label(data: st.DataObject):
    label = np.arange(400, dtype=np.uint8).reshape(20, 20) % 21
    damaged = bytearray(encode_label(label))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode_label(bytes(damaged))
    except DatasetError:
        return
    assert np.array_equal(decoded, label)


@pytest.mark.parametrize("missing", [5, 12, 13, 20, 100, 800])
def test_a_png_cut_short_is_refused_even_if_all_pixels_are_there(missing: int):
    with pytest.raises(DatasetError, match="PNG"):
        decode_label(encode_label(np.arange(100, dtype=np.uint8).reshape(10, 10))[:-missing])


@pytest.mark.parametrize("data", [b"", b"GIF89a", jpeg()])
def test_what_is_no_png_is_refused_with_how_it_begins(data: bytes):
    with pytest.raises(DatasetError, match=re.escape(f"not a PNG, it begins with {data[:8]!r}")):
        decode_label(data)


# --- images


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_colour_greyscale_and_cmyk_jpegs_are_accepted(mode: str, options: dict):
    assert examine(jpeg(mode, (20, 10), **options), "image").size == (10, 20)


def test_a_jpeg_of_one_pixel_is_accepted():
    assert examine(jpeg(size=(1, 1)), "image").size == (1, 1)


@pytest.mark.parametrize("keep", [2, 3, 50, 200, -2, -1])
def test_a_jpeg_cut_short_is_refused(keep: int):
    with pytest.raises(DatasetError, match=r"^sbd 7: i\.jpg: .*JPEG"):
        examine(jpeg()[:keep], "sbd 7: i.jpg")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", encode_label(np.zeros((3, 3), np.uint8))])
def test_what_is_no_jpeg_is_refused_with_how_it_begins(data: bytes):
    with pytest.raises(DatasetError, match=re.escape(f"not a JPEG, it begins with {data[:8]!r}")):
        examine(data, "image")


def test_a_jpeg_of_twelve_bits_is_refused():
    data = bytearray(jpeg())
    data[data.index(JPEG_SOF0) + 4] = 12
    with pytest.raises(
        DatasetError, match=r"^image: a JPEG whose header is damaged or of a kind not read here \(12 bits"
    ):
        examine(bytes(data), "image")


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return jpeg(exif=exif)


@pytest.mark.parametrize("value", range(2, 9))
def test_a_jpeg_that_viewers_turn_is_refused_with_its_orientation(value: int):
    with pytest.raises(DatasetError, match=f"EXIF orientation {value}, expected 1"):
        examine(with_orientation(value), "image")


def test_an_upright_exif_orientation_is_accepted():
    assert examine(with_orientation(1), "image").size == (10, 20)


@pytest.mark.parametrize("exif", [b"not a TIFF header", b"II*\0\x08\0\0\0", b"II*\0\x08\0\0\0\x05\0\x12\x01"])
def test_unreadable_exif_counts_as_none_and_warns_nobody(exif: bytes):
    assert examine(jpeg(exif=b"Exif\0\0" + exif), "image").size == (10, 20)


# Pillow is silent up to 89 million pixels, warns up to 179 million, then raises.
@pytest.mark.parametrize("side", [8193, 10_000, 20_000])
def test_an_image_or_label_of_too_many_pixels_is_refused_before_it_is_decoded(side: int):
    with pytest.raises(DatasetError, match=f"more than {2**26} pixels are refused"):
        examine(jpeg_claiming(side, side), "image")
    with pytest.raises(DatasetError, match=f"more than {2**26} pixels are refused"):
        decode_label(png_claiming(side, side))


# --- a label and its image


def test_a_label_of_another_size_than_its_image_is_refused_with_both_sizes():
    with pytest.raises(DatasetError, match=r"7\.png: label is \(4, 5\), its image \(5, 4\)"):
        check_label(np.zeros((4, 5), np.uint8), (5, 4), 21, "voc 7: 7.png")


@pytest.mark.parametrize("value", [0, 20, 255])
def test_classes_and_void_are_accepted(value: int):
    check_label(np.full((2, 2), value, np.uint8), (2, 2), 21, "label")


@given(
    arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.sampled_from([0, 3, 20, 255])
    )
)
def test_a_labels_pixels_are_counted_by_value(label: np.ndarray):
    assert check_label(label, label.shape, 21, "label").tolist() == [(label == v).sum() for v in range(256)]


@pytest.mark.parametrize("value", [21, 100, 254])
def test_a_value_between_the_classes_and_void_is_refused_by_name(value: int):
    label = np.array([[0, value], [255, 20]], np.uint8)
    with pytest.raises(DatasetError, match=rf"label values {value}; expected 0\.\.20 or 255"):
        check_label(label, (2, 2), 21, "label")


def test_of_many_unknown_values_the_first_eight_are_named():
    label = np.arange(30, dtype=np.uint8).reshape(5, 6)
    with pytest.raises(DatasetError, match="values 5, 6, 7, 8, 9, 10, 11, 12 and 17 more;"):
        check_label(label, (5, 6), 5, "label")


# --- lists and files


def ids_of(folder: Path, content: bytes) -> list[str]:
    (folder / "train.txt").write_bytes(content)
    return read_ids(folder, "train", "voc")


@pytest.mark.parametrize("content", [b"b_2\na-1\n", b"b_2\r\na-1", b"\xef\xbb\xbfb_2\na-1 \n"])
def test_ids_keep_the_order_of_their_list_however_its_lines_end(tmp_path: Path, content: bytes):
    assert ids_of(tmp_path, content) == ["b_2", "a-1"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "lists no ids"),
        (b"\n\n", "lists no ids"),
        (b"a\nb\na\n", "more than once: a;"),
        (b"a\n\nb\n", "line 2: malformed id ''"),
        (b"../a\n", "line 1: malformed id '../a'"),
        (b"a/b\n", "line 1: malformed id 'a/b'"),
        (b"a\\b\n", "line 1: malformed id"),
        (b"a.jpg\n", "line 1: malformed id 'a.jpg'"),
        (b"..\n", "line 1: malformed id '..'"),
        (b"a -1\n", "line 1: malformed id 'a -1'"),
        (b"a\0\n", "line 1: malformed id"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_list_with_unusable_ids_is_refused_with_file_and_value(tmp_path: Path, content: bytes, reason: str):
    with pytest.raises(DatasetError, match=re.escape(reason)) as error:
        ids_of(tmp_path, content)
    assert "train.txt" in str(error.value)


@pytest.mark.parametrize("split", ["trian", "", ".", "..", "../train", "sub/train"])
def test_an_unknown_list_is_refused_and_the_known_ones_named(tmp_path: Path, split: str):
    (tmp_path / "lists").mkdir()
    for name in ("train.txt", "lists/val.txt", "lists/seg11valid.txt"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(DatasetError, match=re.escape(f"no list {split!r}") + ".*there: seg11valid, val$"):
        read_ids(tmp_path / "lists", split, "voc")


def test_without_any_list_the_error_says_so(tmp_path: Path):
    with pytest.raises(DatasetError, match="lists there: none"):
        read_ids(tmp_path / "nowhere", "train", "voc")


@pytest.mark.parametrize("key", ["", ".", "..", "a.b", "a/b", "a b", "a\n", "ä"])
def test_a_key_that_cannot_name_a_file_is_refused(key: str):
    with pytest.raises(DatasetError, match="malformed id"):
        check_key(key, "voc")


def test_a_missing_data_folder_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(
        DatasetError, match=r"no data folder .*nowhere; run `dvc repro -f download`, or check data"
    ):
        require_folder(tmp_path / "nowhere", "voc")


def test_a_file_that_is_missing_or_a_folder_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(DatasetError, match=r"voc 7: .*a\.jpg is missing; run"):
        read_bytes(tmp_path / "a.jpg", "voc 7")
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path, "voc 7")
    (tmp_path / "a.jpg").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a.jpg", "voc 7") == b"12345"
    monkeypatch.setattr(files, "MAX_BYTES", 4)
    with pytest.raises(DatasetError, match="has 5 bytes, more than 4"):
        read_bytes(tmp_path / "a.jpg", "voc 7")


def test_an_image_under_another_header_has_the_same_pixels_and_a_changed_pixel_does_not():
    plain, commented = jpeg("L"), jpeg("L", comment=b"the same again")
    assert plain != commented
    assert examine(plain, "7") == examine(commented, "7")
    assert examine(plain, "7").mode == "L"
    assert examine(plain, "7").pixel_sha256 != examine(jpeg("L", size=(10, 20)), "7").pixel_sha256
