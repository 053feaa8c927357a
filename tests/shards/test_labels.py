"""pipeline/shards/labels.py: label PNGs, good and bad, and the check of their values."""

import hashlib
import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.shards.images import MAX_PIXELS
from pipeline.shards.labels import check_label, decode_label, encode_label, voc_palette

# As VOC's development kit tabulates them, background to tvmonitor
VOC_COLOURS = """0 0 0, 128 0 0, 0 128 0, 128 128 0, 0 0 128, 128 0 128, 0 128 128, 128 128 128,
64 0 0, 192 0 0, 64 128 0, 192 128 0, 64 0 128, 192 0 128, 64 128 128, 192 128 128,
0 64 0, 128 64 0, 0 192 0, 128 192 0, 0 64 128"""
GREY, PALETTE = 0, 3  # PNG colour types


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def hand_made_png(values: np.ndarray, bits: int, colour_type: int) -> bytes:
    """Build a PNG by hand, because Pillow writes no greyscale of 2 or 4 bits."""
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


def test_the_palette_is_the_published_one():
    expected = [[int(value) for value in colour.split()] for colour in VOC_COLOURS.split(",")]
    assert voc_palette()[:21].tolist() == expected
    assert voc_palette()[255].tolist() == [224, 224, 192]
    assert len(np.unique(voc_palette(), axis=0)) == 256


# --- encoding


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
@settings(max_examples=60, deadline=None)
def test_a_label_is_decoded_from_its_png_unchanged(label: np.ndarray):
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


# --- decoding


@pytest.mark.parametrize(
    ("bits", "colour_type"), [(1, PALETTE), (2, PALETTE), (4, PALETTE), (8, PALETTE), (8, GREY)]
)
def test_a_palette_png_of_any_bit_depth_and_an_eight_bit_grey_one_give_their_values(
    bits: int, colour_type: int
):
    label = (np.arange(35).reshape(5, 7) % 2**bits).astype(np.uint8)
    assert np.array_equal(decode_label(hand_made_png(label, bits, colour_type)), label)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(Image.new("RGB", (4, 4))), "mode RGB with 8 bits"),
        (png(Image.new("RGBA", (4, 4))), "mode RGBA with 8 bits"),
        (png(Image.new("LA", (4, 4))), "mode LA with 8 bits"),
        (png(Image.new("1", (4, 4))), "mode 1 with 1 bits"),
        (png(Image.fromarray(np.ones((4, 4), np.uint16))), "mode I;16 with 16 bits"),
        (hand_made_png(np.ones((5, 7), np.uint8), 2, GREY), "mode L with 2 bits"),  # which Pillow stretches
        (hand_made_png(np.ones((5, 7), np.uint8), 4, GREY), "mode L with 4 bits"),
    ],
)
def test_a_mask_that_holds_no_indices_is_refused_with_its_mode_and_the_remedy(data: bytes, reason: str):
    with pytest.raises(DatasetError, match=rf"^voc 7: m\.png: .*{re.escape(reason)}.*palette.*`fcn import`"):
        decode_label(data, "voc 7: m.png")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_png_with_a_flipped_bit_is_refused_or_still_the_same_label(data: st.DataObject):
    label = np.arange(400, dtype=np.uint8).reshape(20, 20) % 21
    damaged = bytearray(encode_label(label))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode_label(bytes(damaged))
    except DatasetError:
        return
    assert np.array_equal(decoded, label)


@pytest.mark.parametrize("missing", [5, 12, 13, 20, 100, 800])
def test_a_png_cut_short_is_refused_even_if_all_pixels_are_there(missing: int):
    with pytest.raises(DatasetError, match="PNG"):
        decode_label(encode_label(np.arange(100, dtype=np.uint8).reshape(10, 10))[:-missing])


@pytest.mark.parametrize("options", [{}, {"quality": 100, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_mask_is_refused_because_it_changes_label_values(mode: str, options: dict):
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "JPEG", **options)
    with pytest.raises(DatasetError, match=r"^voc 7: m\.png: a JPEG, which changes label values"):
        decode_label(file.getvalue(), "voc 7: m.png")


@pytest.mark.parametrize("data", [b"", b"GIF89a"])
def test_a_file_of_another_format_is_refused_with_its_first_bytes(data: bytes):
    with pytest.raises(DatasetError, match=re.escape(repr(data[:8]))):
        decode_label(data)


@pytest.mark.parametrize("side", [8193, 20_000])
def test_a_label_of_too_many_pixels_is_refused_before_it_is_decoded(side: int):
    data = bytearray(encode_label(np.zeros((4, 4), np.uint8)))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(DatasetError, match=f"more than {MAX_PIXELS} pixels"):
        decode_label(bytes(data))


# --- the check of a label's values


def test_a_label_of_another_size_than_its_image_is_refused_with_both_sizes():
    with pytest.raises(DatasetError, match=r"7\.png: .*\(4, 5\).*\(5, 4\)"):
        check_label(np.zeros((4, 5), np.uint8), (5, 4), 21, "voc 7: 7.png")


@given(
    arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.sampled_from([0, 3, 20, 255])
    )
)
def test_the_pixels_of_each_class_and_of_void_are_counted(label: np.ndarray):
    assert check_label(label, label.shape, 21, "label").tolist() == [(label == v).sum() for v in range(256)]


@pytest.mark.parametrize("value", [21, 100, 254])
def test_a_value_between_the_classes_and_void_is_refused_by_name(value: int):
    label = np.array([[0, value], [255, 20]], np.uint8)
    with pytest.raises(DatasetError, match=rf"label values {value}; expected 0\.\.20 or 255"):
        check_label(label, (2, 2), 21, "label")
