"""pipeline/datasets/voc.py: the published layout, and what is refused in it."""

import csv
import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import voc
from pipeline.errors import DatasetError

SHARED = Path(os.environ.get("FCN_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
real = pytest.mark.skipif(
    not (SHARED / "voc").is_dir(), reason="no real VOC images: set FCN_TEST_DATA to a folder that holds voc/"
)
NUM_CLASSES = 21


def jpeg(size: tuple[int, int] = (6, 4), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 99).save(file, "JPEG")
    return file.getvalue()


def write_mask(path: Path, label: np.ndarray) -> None:
    image = Image.fromarray(label)
    image.putpalette(bytes(range(256)) * 3)
    image.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of 6x4 pixels, a in train and b in val, with every kind of label value."""
    lists = tmp_path / "ImageSets" / "Segmentation"
    for folder in (lists, tmp_path / "JPEGImages", tmp_path / "SegmentationClass"):
        folder.mkdir(parents=True)
    for key, list_name in (("a", "train"), ("b", "val")):
        (lists / f"{list_name}.txt").write_text(f"{key}\n")
        (tmp_path / "JPEGImages" / f"{key}.jpg").write_bytes(jpeg())
        label = np.array([[0, 1, 20, 255, 0, 0]] * 4, np.uint8)
        write_mask(tmp_path / "SegmentationClass" / f"{key}.png", label)
    (lists / "trainval.txt").write_text("b\na\n")
    return tmp_path


def test_a_sample_is_the_untouched_jpeg_and_the_indices_of_its_mask(root: Path):
    sample = voc.LAYOUT.sample(root, "a", NUM_CLASSES)
    assert sample.key == "a"
    assert sample.jpeg == (root / "JPEGImages" / "a.jpg").read_bytes()
    assert sample.label.dtype == np.uint8
    assert sample.label.tolist() == [[0, 1, 20, 255, 0, 0]] * 4


def test_the_ids_of_a_split_come_in_the_order_of_its_list(root: Path):
    assert voc.LAYOUT.ids(root, "trainval") == ["b", "a"]


def test_a_list_of_ones_own_is_a_split(root: Path):
    (root / "ImageSets" / "Segmentation" / "mine.txt").write_text("b\n")
    assert voc.LAYOUT.ids(root, "mine") == ["b"]


def test_an_unknown_split_is_answered_with_those_there_are(root: Path):
    with pytest.raises(DatasetError, match=r"voc: no list 'vla' in .*; lists there: train, trainval, val"):
        voc.LAYOUT.ids(root, "vla")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_greyscale_and_cmyk_images_are_accepted_as_they_are(root: Path, mode: str):
    (root / "JPEGImages" / "a.jpg").write_bytes(jpeg(mode=mode))
    assert voc.LAYOUT.sample(root, "a", NUM_CLASSES).jpeg == jpeg(mode=mode)


def test_an_image_of_one_pixel_is_accepted(root: Path):
    (root / "JPEGImages" / "a.jpg").write_bytes(jpeg((1, 1)))
    write_mask(root / "SegmentationClass" / "a.png", np.array([[20]], np.uint8))
    assert voc.LAYOUT.sample(root, "a", NUM_CLASSES).label.tolist() == [[20]]


def drop_image(root: Path) -> None:
    (root / "JPEGImages" / "a.jpg").unlink()


def drop_mask(root: Path) -> None:
    (root / "SegmentationClass" / "a.png").unlink()


def cut_image(root: Path) -> None:
    (root / "JPEGImages" / "a.jpg").write_bytes(jpeg()[:-20])


def cut_mask(root: Path) -> None:
    path = root / "SegmentationClass" / "a.png"
    path.write_bytes(path.read_bytes()[:-20])


def swap_sides(root: Path) -> None:
    write_mask(root / "SegmentationClass" / "a.png", np.zeros((6, 4), np.uint8))


def colour_mask(root: Path) -> None:
    Image.new("RGB", (6, 4)).save(root / "SegmentationClass" / "a.png")


def unknown_class(root: Path) -> None:
    write_mask(root / "SegmentationClass" / "a.png", np.full((4, 6), 21, np.uint8))


def turn_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(root / "JPEGImages" / "a.jpg", exif=exif)


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (drop_image, "a.jpg", "is missing"),
        (drop_mask, "a.png", "is missing"),
        (cut_image, "a.jpg", "damaged JPEG"),
        (cut_mask, "a.png", "damaged PNG"),
        (swap_sides, "a.png", "label is (6, 4), its image (4, 6)"),
        (colour_mask, "a.png", "mode RGB"),
        (unknown_class, "a.png", "label values 21"),
        (turn_image, "a.jpg", "EXIF orientation 6"),
    ],
)
def test_a_bad_pair_is_refused_with_its_id_file_and_reason(root: Path, damage, file: str, reason: str):
    damage(root)
    with pytest.raises(DatasetError, match=rf"^voc a: .*{re.escape(file)}.*{re.escape(reason)}"):
        voc.LAYOUT.sample(root, "a", NUM_CLASSES)
    assert voc.LAYOUT.sample(root, "b", NUM_CLASSES).key == "b"


def test_an_id_cannot_lead_out_of_the_folder(root: Path):
    with pytest.raises(DatasetError, match="malformed id"):
        voc.LAYOUT.sample(root / "JPEGImages", "../b", NUM_CLASSES)


def test_a_missing_data_folder_is_refused_with_the_remedy(tmp_path: Path):
    nowhere = voc.root(tmp_path)
    for read in (
        lambda: voc.LAYOUT.ids(nowhere, "train"),
        lambda: voc.LAYOUT.sample(nowhere, "a", NUM_CLASSES),
    ):
        with pytest.raises(DatasetError, match=r"voc: no data folder .*VOC2012; run `dvc repro -f download`"):
            read()


def test_the_root_is_where_each_years_archive_unpacks(tmp_path: Path):
    assert voc.root(tmp_path) == tmp_path / "VOCdevkit" / "VOC2012"
    assert voc.root(tmp_path, 2011) == tmp_path / "VOCdevkit" / "VOC2011"
    quirk = tmp_path / "TrainVal" / "VOCdevkit" / "VOC2011"
    quirk.mkdir(parents=True)
    assert voc.root(tmp_path, 2011) == quirk
    assert voc.root(tmp_path, 2012) == tmp_path / "VOCdevkit" / "VOC2012"
    (tmp_path / "VOCdevkit" / "VOC2011").mkdir(parents=True)
    assert voc.root(tmp_path, 2011) == tmp_path / "VOCdevkit" / "VOC2011"


# --- real images


@real
def test_the_official_lists_have_the_published_counts():
    for split in ("train", "val", "seg11valid"):
        assert len(voc.LAYOUT.ids(SHARED / "voc", split)) == voc.PUBLISHED_COUNTS[f"voc2012/{split}"]


@real
def test_real_pairs_read_as_pillow_reads_them_and_are_the_files_of_the_manifest():
    with (SHARED / "MANIFEST.tsv").open() as file:
        manifest = {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}
    keys = (SHARED / "here" / "voc12_train.txt").read_text().split()[::8][:40]
    assert len(keys) == 40
    for key in keys:
        sample = voc.LAYOUT.sample(SHARED / "voc", key, NUM_CLASSES)
        mask = np.asarray(Image.open(SHARED / "voc" / "SegmentationClass" / f"{key}.png"))
        assert np.array_equal(sample.label, mask)
        assert Image.open(io.BytesIO(sample.jpeg)).size == mask.shape[::-1]
        assert hashlib.sha256(sample.jpeg).hexdigest() == manifest[key]["image_sha256"]


@real
def test_an_official_id_whose_image_is_not_here_is_named():
    here = {path.stem for path in (SHARED / "voc" / "JPEGImages").iterdir()}
    absent = next(key for key in voc.LAYOUT.ids(SHARED / "voc", "train") if key not in here)
    with pytest.raises(
        DatasetError, match=rf"^voc {absent}: .*{absent}\.jpg is missing; run `dvc repro -f download`"
    ):
        voc.LAYOUT.sample(SHARED / "voc", absent, NUM_CLASSES)
