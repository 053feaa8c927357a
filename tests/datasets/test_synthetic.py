"""pipeline/datasets/synthetic.py: the drawn data set, read by this project's code and by other code."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import SBDataset, VOCSegmentation

from fcn import IGNORE_LABEL
from pipeline.datasets import sbd, synthetic, voc
from pipeline.datasets.layout import Layout
from pipeline.errors import DatasetError
from pipeline.shards.sample import Sample

NUM_CLASSES = len(synthetic.CLASSES)
# sha256 of draw_tiny's files. Other bytes are another data set: scores from before no longer compare.
GOLDEN = "7d61685a40d3adcad9c54810f84ed314f3ac53abcae3b143ea34463aa3584e0f"


def draw_tiny(raw: Path, num_train: int = 4, num_val: int = 3, seed: int = 7) -> Path:
    synthetic.draw(raw, num_train=num_train, num_val=num_val, image_size=64, seed=seed)
    return raw


def samples(layout: Layout, root: Path, split: str) -> list[Sample]:
    return [layout.sample(root, key, NUM_CLASSES) for key in layout.ids(root, split)]


def files_in(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tiny(tmp_path_factory.mktemp("sample") / "raw")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """(60, 128, 128) labels of the size the sample profile draws."""
    return np.stack([synthetic.picture("sbd_train", number, 128, seed=7)[1] for number in range(60)])


# --- layout


def test_every_byte_is_the_recorded_one(raw: Path):
    digest = hashlib.sha256()
    for name, content in files_in(raw).items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    assert digest.hexdigest() == GOLDEN


def test_every_listed_id_of_both_layouts_reads_as_a_sample(raw: Path):
    sbd_root, voc_root = sbd.root(raw), voc.root(raw)
    num_read = {}
    for split in ("train", "val"):
        num_read[f"sbd {split}"] = len(samples(sbd.LAYOUT, sbd_root, split))
    for split in ("train", "val", "trainval", "seg11valid"):
        num_read[f"voc {split}"] = len(samples(voc.LAYOUT, voc_root, split))
    assert num_read == {
        "sbd train": 4,
        "sbd val": synthetic.NUM_SPARE,
        "voc train": synthetic.NUM_SPARE,
        "voc val": 3,
        "voc trainval": 3 + synthetic.NUM_SPARE,
        "voc seg11valid": 3,
    }


def test_no_image_is_in_two_splits(raw: Path):
    images = [content for name, content in files_in(raw).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 4 + 3 + 2 * synthetic.NUM_SPARE


def test_torchvision_reads_the_same_sets(raw: Path):
    their_val = VOCSegmentation(str(raw), year="2012", image_set="val")
    their_train = SBDataset(str(sbd.root(raw)), image_set="train", mode="segmentation")
    for theirs, ours in (
        (their_val, samples(voc.LAYOUT, voc.root(raw), "val")),
        (their_train, samples(sbd.LAYOUT, sbd.root(raw), "train")),
    ):
        for (image, mask), sample in zip(theirs, ours, strict=True):
            assert np.array_equal(np.asarray(mask), sample.label)
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(sample.image))))


# --- all or nothing


def test_another_seed_draws_other_images(raw: Path, tmp_path: Path):
    other = files_in(draw_tiny(tmp_path / "raw", seed=8))
    same = [name for name, content in files_in(raw).items() if other[name] == content]
    assert {Path(name).suffix for name in same} == {".txt"}


def test_a_larger_set_begins_with_the_smaller_one(raw: Path, tmp_path: Path):
    larger = files_in(draw_tiny(tmp_path / "raw", num_train=6, num_val=5))
    for name, content in files_in(raw).items():
        assert larger[name].startswith(content) if name.endswith(".txt") else larger[name] == content


def test_a_folder_with_content_is_not_drawn_over(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="is not empty; remove it"):
        draw_tiny(tmp_path)
    assert files_in(tmp_path) == {"photo.jpg": b"mine"}


def test_a_drawing_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def disk_full(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "encode_label", disk_full)
    with pytest.raises(DatasetError, match="disk full"):
        draw_tiny(tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


# --- the pictures


def test_labels_hold_every_class_in_many_images_and_nothing_else(labels: np.ndarray):
    assert set(np.unique(labels)) == {*range(NUM_CLASSES), IGNORE_LABEL}
    for class_index in range(NUM_CLASSES):
        assert (labels == class_index).any(axis=(1, 2)).mean() > 0.5, synthetic.CLASSES[class_index]


def test_void_lies_between_any_two_classes_and_is_thin(labels: np.ndarray):
    for first, second in (
        (labels[:, 1:], labels[:, :-1]),
        (labels[:, :, 1:], labels[:, :, :-1]),
        (labels[:, 1:, 1:], labels[:, :-1, :-1]),
        (labels[:, 1:, :-1], labels[:, :-1, 1:]),
    ):
        assert ((first == second) | (first == IGNORE_LABEL) | (second == IGNORE_LABEL)).all()
    assert (labels == IGNORE_LABEL).mean() < 0.05


def test_the_coarser_the_stride_the_lower_the_best_possible_mean_iu(labels: np.ndarray):
    """With one class per cell of stride x stride pixels, the best one, no network can do better than this."""
    bound = {}
    for stride in (32, 16, 8):
        cells = labels.reshape(60, 128 // stride, stride, 128 // stride, stride)
        votes = np.stack([(cells == class_index).sum((2, 4)) for class_index in range(NUM_CLASSES)])
        best = votes.argmax(0).repeat(stride, 1).repeat(stride, 2)
        valid = labels != IGNORE_LABEL
        counts = [
            ((labels == c) & (best == c)).sum() / (valid & ((labels == c) | (best == c))).sum()
            for c in range(NUM_CLASSES)
        ]
        bound[stride] = np.mean(counts)
    assert bound[32] < 0.5 < bound[16] < 0.72 < bound[8]


def test_the_colour_tells_a_shapes_class_in_spite_of_brightness_and_noise():
    hue = synthetic._COLOURS[1:] / np.linalg.norm(synthetic._COLOURS[1:], axis=1, keepdims=True)
    right = total = 0
    for number in range(10):
        image, label = synthetic.picture("sbd_train", number, 128, seed=7)
        inside = (label > 0) & (label < NUM_CLASSES)
        guess = (image[inside].astype(float) @ hue.T).argmax(1) + 1
        right, total = right + (guess == label[inside]).sum(), total + inside.sum()
    assert right / total > 0.9
