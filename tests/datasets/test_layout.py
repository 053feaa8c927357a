"""pipeline/datasets/layout.py: samples of VOC's and SBD's layouts, and pairs that are refused."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.datasets import sbd, voc
from pipeline.datasets.layout import Layout
from pipeline.errors import DatasetError

NUM_CLASSES = 21
LABEL = np.array([[0, 1, 20, 255, 0, 0]] * 3 + [[0, 1, 2, 3, 4, 5]], np.uint8)


def jpeg(size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 99).save(file, "JPEG", **options)
    return file.getvalue()


def write_label(path: Path, label: np.ndarray) -> None:
    if path.suffix == ".mat":
        savemat(path, {"GTcls": {"Segmentation": label}})
    else:
        image = Image.fromarray(label)
        image.putpalette(bytes(range(256)) * 3)
        image.save(path)


@pytest.fixture(params=[voc.LAYOUT, sbd.LAYOUT], ids=["voc", "sbd"])
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


@pytest.fixture
def root(tmp_path: Path, layout: Layout) -> Path:
    """Two images of 6x4 pixels: a is in train, b in val."""
    for name in (layout.lists, layout.images, layout.labels):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for split, keys in {"train": "a", "val": "b", "trainval": "b\na"}.items():
        (tmp_path / layout.lists / f"{split}.txt").write_text(f"{keys}\n")
    for key in "ab":
        photo, label = layout.files(tmp_path, key)
        photo.write_bytes(jpeg())
        write_label(label, LABEL)
    return tmp_path


def test_a_sample_is_the_unchanged_jpeg_and_the_values_of_its_label(layout: Layout, root: Path):
    sample = layout.sample(root, "a", NUM_CLASSES)
    assert sample.key == "a"
    assert sample.image == layout.files(root, "a")[0].read_bytes()
    assert sample.label.dtype == np.uint8
    assert sample.label.flags.c_contiguous
    assert sample.label.tolist() == LABEL.tolist()


def test_the_ids_of_a_split_come_in_the_order_of_its_list(layout: Layout, root: Path):
    assert layout.ids(root, "trainval") == ["b", "a"]


def test_an_unknown_split_is_refused_with_those_there_are(layout: Layout, root: Path):
    with pytest.raises(DatasetError, match=rf"{layout.name}: .*'trian'.*: train, trainval, val"):
        layout.ids(root, "trian")


def test_a_missing_data_set_is_refused_with_its_folder_and_the_remedy(layout: Layout, tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    for read in (lambda: layout.ids(nowhere, "train"), lambda: layout.sample(nowhere, "a", NUM_CLASSES)):
        with pytest.raises(DatasetError, match=rf"^{layout.name}: .*{nowhere}; run `dvc repro -f download`"):
            read()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_an_image_of_one_pixel_in_any_mode_is_accepted_as_it_is(layout: Layout, root: Path, mode: str):
    photo, label = layout.files(root, "a")
    photo.write_bytes(jpeg((1, 1), mode))
    write_label(label, np.array([[20]], np.uint8))
    sample = layout.sample(root, "a", NUM_CLASSES)
    assert (sample.image, sample.label.tolist()) == (jpeg((1, 1), mode), [[20]])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


Damage = Callable[[Path, Path], object]
DAMAGE: dict[str, tuple[Damage, str, str]] = {  # by name: the damage, the file and the reason in the message
    "no image": (lambda photo, _: photo.unlink(), "photo", "is missing"),
    "no label": (lambda _, label: label.unlink(), "label", "is missing"),
    "image cut": (lambda photo, _: photo.write_bytes(jpeg()[:-20]), "photo", "damaged JPEG"),
    "label cut": (lambda _, label: label.write_bytes(label.read_bytes()[:-20]), "label", "damaged"),
    "sides swapped": (lambda _, label: write_label(label, LABEL.T), "label", "(6, 4), its image (4, 6)"),
    "unknown class": (lambda _, label: write_label(label, LABEL + np.uint8(1)), "label", "label values 21"),
    "image turned": (lambda photo, _: photo.write_bytes(turned()), "photo", "EXIF orientation 6"),
    "another format": (
        lambda _, label: label.write_bytes(b"GIF89a"),
        "label",
        "it begins with b'GIF89a'",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_pair_is_refused_with_its_id_file_and_reason(layout: Layout, root: Path, name: str):
    damage, file, reason = DAMAGE[name]
    photo, label = layout.files(root, "a")
    damage(photo, label)
    path = {"photo": photo, "label": label}[file]
    with pytest.raises(
        DatasetError, match=rf"^{layout.name} a: .*{re.escape(f'{path}')}.*{re.escape(reason)}"
    ):
        layout.sample(root, "a", NUM_CLASSES)
    assert layout.sample(root, "b", NUM_CLASSES).key == "b"


def test_an_id_cannot_lead_out_of_the_folder(layout: Layout, root: Path):
    with pytest.raises(DatasetError, match="malformed id"):
        layout.sample(root, f"../{layout.images}/b", NUM_CLASSES)
