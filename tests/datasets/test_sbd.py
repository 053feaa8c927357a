"""pipeline/datasets/sbd.py: the published layout, and its MATLAB labels read without scipy."""

import io
import os
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

SHARED = Path(os.environ.get("FCN_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
real = pytest.mark.skipif(
    not (SHARED / "sbd").is_dir(), reason="no real SBD images: set FCN_TEST_DATA to a folder that holds sbd/"
)
NUM_CLASSES = 21
LABEL = np.array([[0, 1, 20, 255, 0, 0]] * 3 + [[0, 1, 2, 3, 4, 5]], np.uint8)
MI_COMPRESSED = 15


def jpeg(size: tuple[int, int] = (6, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, 99).save(file, "JPEG")
    return file.getvalue()


def mat(compressed: bool = False, **variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def published(label: np.ndarray, compressed: bool = True) -> bytes:
    """All three fields of the published files; the boundaries, a cell of sparse matrices, come first."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix((label == index + 1).astype(float))
    present = np.array([[15.0]])
    truth = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    return mat(compressed, GTcls=truth)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of 6x4 pixels, a in train and b in val."""
    for folder in ("img", "cls"):
        (tmp_path / folder).mkdir()
    for key, split in (("a", "train"), ("b", "val")):
        (tmp_path / f"{split}.txt").write_text(f"{key}\n")
        (tmp_path / "img" / f"{key}.jpg").write_bytes(jpeg())
        (tmp_path / "cls" / f"{key}.mat").write_bytes(mat(GTcls={"Segmentation": LABEL}))
    return tmp_path


def test_a_sample_is_the_untouched_jpeg_and_the_segmentation_of_its_mat(root: Path):
    sample = sbd.LAYOUT.sample(root, "a", NUM_CLASSES)
    assert sample.key == "a"
    assert sample.jpeg == (root / "img" / "a.jpg").read_bytes()
    assert sample.label.dtype == np.uint8
    assert sample.label.flags.c_contiguous
    assert sample.label.tolist() == LABEL.tolist()


def test_the_ids_of_a_split_come_in_the_order_of_its_list(root: Path):
    (root / "both.txt").write_text("b\na\n")
    assert sbd.LAYOUT.ids(root, "both") == ["b", "a"]


def test_an_unknown_split_is_answered_with_those_there_are(root: Path):
    with pytest.raises(DatasetError, match=r"sbd: no list 'trian' in .*; lists there: train, val"):
        sbd.LAYOUT.ids(root, "trian")


def test_the_root_is_where_the_archive_unpacks(tmp_path: Path):
    assert sbd.root(tmp_path) == tmp_path / "benchmark_RELEASE" / "dataset"
    with pytest.raises(DatasetError, match=r"sbd: no data folder .*dataset; run `dvc repro -f download`"):
        sbd.LAYOUT.ids(sbd.root(tmp_path), "train")
    with pytest.raises(DatasetError, match="sbd: no data folder"):
        sbd.LAYOUT.sample(sbd.root(tmp_path), "a", NUM_CLASSES)


def test_the_published_counts_add_up():
    assert sbd.PUBLISHED_COUNTS["sbd/train"] + sbd.PUBLISHED_COUNTS["sbd/val"] == 11355


# --- labels


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)),
    st.booleans(),
    st.sampled_from(["Segmentation", "all"]),
)
@settings(max_examples=60, deadline=None)
def test_a_label_is_what_scipy_reads(label: np.ndarray, compressed: bool, fields: str):
    data = published(label, compressed) if fields == "all" else mat(compressed, GTcls={"Segmentation": label})
    expected = loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0]
    assert np.array_equal(sbd.decode_mat(data), expected)
    assert np.array_equal(label, expected)


def test_other_variables_beside_the_label_do_not_matter():
    data = mat(compressed=True, first=np.zeros(3), GTcls={"Segmentation": LABEL}, last="text")
    assert np.array_equal(sbd.decode_mat(data), LABEL)


def big_endian_mat() -> bytes:
    """Put together by hand from "MAT-File Format": a 2x1 label [7; 255]."""

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
    with pytest.raises(DatasetError, match=r"MATLAB 7\.3 file \(HDF5\).*save it with -v7"):
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
    for place, value in changes:
        data[place % len(data)] = value
    try:
        label = sbd.decode_mat(bytes(data))
    except DatasetError:
        return
    assert (label.dtype, label.ndim) == (np.uint8, 2)


# --- pairs


def drop_image(root: Path) -> None:
    (root / "img" / "a.jpg").unlink()


def drop_label(root: Path) -> None:
    (root / "cls" / "a.mat").unlink()


def cut_image(root: Path) -> None:
    (root / "img" / "a.jpg").write_bytes(jpeg()[:-20])


def cut_label(root: Path) -> None:
    path = root / "cls" / "a.mat"
    path.write_bytes(path.read_bytes()[:-20])


def swap_sides(root: Path) -> None:
    (root / "cls" / "a.mat").write_bytes(mat(GTcls={"Segmentation": LABEL.T}))


def unknown_class(root: Path) -> None:
    (root / "cls" / "a.mat").write_bytes(mat(GTcls={"Segmentation": LABEL + np.uint8(1)}))


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (drop_image, "a.jpg", "is missing"),
        (drop_label, "a.mat", "is missing"),
        (cut_image, "a.jpg", "damaged JPEG"),
        (cut_label, "a.mat", "an element claims"),
        (swap_sides, "a.mat", "label is (6, 4), its image (4, 6)"),
        (unknown_class, "a.mat", "label values 21"),
    ],
)
def test_a_bad_pair_is_refused_with_its_id_file_and_reason(root: Path, damage, file: str, reason: str):
    damage(root)
    with pytest.raises(DatasetError, match=rf"^sbd a: .*{re.escape(file)}.*{re.escape(reason)}"):
        sbd.LAYOUT.sample(root, "a", NUM_CLASSES)
    assert sbd.LAYOUT.sample(root, "b", NUM_CLASSES).key == "b"


def test_an_id_cannot_lead_out_of_the_folder(root: Path):
    with pytest.raises(DatasetError, match="malformed id"):
        sbd.LAYOUT.sample(root, "../img/b", NUM_CLASSES)


@real
def test_real_labels_written_as_sbd_publishes_them_read_as_they_were(tmp_path: Path):
    for folder in ("img", "cls"):
        (tmp_path / folder).mkdir()
    masks = sorted((SHARED / "sbd" / "cls_png").glob("*.png"))[::10][:20]
    assert len(masks) == 20
    for mask in masks:
        label = np.asarray(Image.open(mask))
        (tmp_path / "cls" / f"{mask.stem}.mat").write_bytes(published(label))
        image = (SHARED / "sbd" / "img" / f"{mask.stem}.jpg").read_bytes()
        (tmp_path / "img" / f"{mask.stem}.jpg").write_bytes(image)
        sample = sbd.LAYOUT.sample(tmp_path, mask.stem, NUM_CLASSES)
        assert sample.jpeg == image
        assert np.array_equal(sample.label, label)
