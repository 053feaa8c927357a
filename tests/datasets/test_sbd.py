"""pipeline/datasets/sbd.py: MATLAB labels, decoded without scipy and held against it."""

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
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from pipeline.datasets import sbd
from pipeline.errors import DatasetError

LABEL = np.array([[0, 1, 20, 255, 0, 0]] * 3 + [[0, 1, 2, 3, 4, 5]], np.uint8)
MI_COMPRESSED = 15


def mat(compressed: bool = False, **variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def published(label: np.ndarray, compressed: bool = True) -> bytes:
    """Return a file with all three published fields; the boundaries, a cell of sparse matrices, come first."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix((label == index + 1).astype(float))
    present = np.array([[15.0]])
    truth = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    return mat(compressed, GTcls=truth)


def test_the_root_is_where_the_archive_unpacks(tmp_path: Path):
    assert sbd.root(tmp_path) == tmp_path / "benchmark_RELEASE" / "dataset"


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)),
    st.booleans(),
    st.sampled_from(["Segmentation", "all"]),
)
@settings(max_examples=60, deadline=None)
def test_a_label_is_decoded_as_scipy_decodes_it(label: np.ndarray, compressed: bool, fields: str):
    data = published(label, compressed) if fields == "all" else mat(compressed, GTcls={"Segmentation": label})
    expected = loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0]
    assert np.array_equal(sbd.decode_mat(data), expected)
    assert np.array_equal(label, expected)


def test_other_variables_beside_the_label_are_ignored():
    data = mat(compressed=True, first=np.zeros(3), GTcls={"Segmentation": LABEL}, last="text")
    assert np.array_equal(sbd.decode_mat(data), LABEL)


def big_endian_mat() -> bytes:
    """Return a file built by hand after "MAT-File Format": a 2x1 label [7; 255]."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(kind: int, shape: tuple[int, int], name: bytes, content: bytes) -> bytes:
        head = element(6, struct.pack(">II", kind, 0)) + element(5, struct.pack(">ii", *shape))
        return element(14, head + element(1, name) + content)

    short_values = struct.pack(">HH", 2, 2) + bytes([7, 255, 0, 0])  # short form: size, type, content
    label = matrix(9, (2, 1), b"", short_values)
    short_width = struct.pack(">HH", 4, 5) + struct.pack(">i", 16)
    truth = matrix(2, (1, 1), b"GTcls", short_width + element(1, b"Segmentation".ljust(16, b"\0")) + label)
    return b"MATLAB 5.0".ljust(124) + struct.pack(">H", 0x0100) + b"MI" + truth


def test_a_file_in_big_endian_order_is_read():
    assert sbd.decode_mat(big_endian_mat()).tolist() == [[7], [255]]
    assert loadmat(io.BytesIO(big_endian_mat()))["GTcls"][0]["Segmentation"][0].tolist() == [[7], [255]]


def struct_array() -> np.ndarray:
    truth = np.empty((2, 1), [("Segmentation", object)])
    truth["Segmentation"][:] = [[LABEL], [LABEL]]
    return truth


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a MATLAB 5 file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "not a MATLAB 5 file, it begins with b'\\x89PNG"),
        (mat(GTcls={"Segmentation": LABEL})[:128], "no variable GTcls, found []"),
        (mat(GTinst={"Segmentation": LABEL}), "no variable GTcls, found ['GTinst']"),
        (mat(GTcls=LABEL), "GTcls has MATLAB class 9, shape (4, 6); expected a 1x1 struct"),
        (mat(GTcls=struct_array()), "GTcls has MATLAB class 2, shape (2, 1); expected a 1x1 struct"),
        (mat(GTcls={"Boundaries": LABEL}), "no field Segmentation, found ['Boundaries']"),
        (mat(GTcls={"Segmentation": LABEL.astype(float)}), "Segmentation has MATLAB class 6"),
        (mat(GTcls={"Segmentation": LABEL.astype(np.int8)}), "Segmentation has MATLAB class 8"),
        (mat(GTcls={"Segmentation": "text"}), "Segmentation has MATLAB class 4"),
        (mat(GTcls={"Segmentation": np.zeros((2, 2, 2), np.uint8)}), "shape (2, 2, 2); expected uint8, 2-D"),
        (mat(GTcls={"Segmentation": np.zeros((0, 4), np.uint8)}), "shape (0, 4); expected uint8, 2-D"),
    ],
)
def test_a_file_without_the_label_is_refused_with_what_came(data: bytes, reason: str):
    with pytest.raises(DatasetError, match=re.escape(reason)) as error:
        sbd.decode_mat(data, "sbd a: a.mat")
    assert str(error.value).startswith("sbd a: a.mat: ")


@pytest.mark.parametrize(
    "data",
    [
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124)
        + b"\x00\x02IM"
        + bytes(384)
        + b"\x89HDF\r\n\x1a\n",
        b"\x89HDF\r\n\x1a\n" + bytes(600),
    ],
)
def test_a_matlab_7_3_file_is_refused_with_the_remedy(data: bytes):
    with pytest.raises(DatasetError, match=r"MATLAB 7\.3.*-v7"):
        sbd.decode_mat(data)


def test_a_small_file_that_unpacks_to_very_much_is_refused():
    packer = zlib.compressobj(1)
    deflated = b"".join(packer.compress(bytes(2**20)) for _ in range(150)) + packer.flush()
    bomb = mat()[:128] + struct.pack("=II", MI_COMPRESSED, len(deflated)) + deflated
    assert len(bomb) < 2**20
    with pytest.raises(DatasetError, match=f"unpacks to more than {2**27} bytes"):
        sbd.decode_mat(bomb)


def test_a_label_that_claims_more_pixels_than_it_has_is_refused():
    data = mat(GTcls={"Segmentation": LABEL})
    claim = data.replace(struct.pack("=ii", *LABEL.shape), struct.pack("=ii", 20_000, 20_000))
    assert claim != data
    with pytest.raises(DatasetError, match=r"has 24 values of type 2 for shape \(20000, 20000\)"):
        sbd.decode_mat(claim)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_before_its_end_is_refused(compressed: bool):
    data = mat(compressed, GTcls={"Segmentation": LABEL})
    for end in range(len(data)):
        with pytest.raises(DatasetError):
            sbd.decode_mat(data[:end])


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_refused_or_still_a_label_and_never_ends_the_process(
    compressed: bool, changes: list[tuple[int, int]]
):
    data = bytearray(published(LABEL[:2, :2], compressed))
    for index, value in changes:
        data[index % len(data)] = value
    try:
        label = sbd.decode_mat(bytes(data))
    except DatasetError:
        return
    assert (label.dtype, label.ndim) == (np.uint8, 2)


def test_real_labels_in_the_published_form_are_decoded_unchanged(real_data: Path):
    masks = sorted((real_data / "sbd" / "cls_png").glob("*.png"))[::10][:20]
    assert len(masks) == 20
    for mask in masks:
        label = np.asarray(Image.open(mask))
        assert np.array_equal(sbd.decode_mat(published(label)), label)
