"""The fingerprint of drawn folders, against numbers counted by hand, and the folders that it refuses."""

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.planning import fingerprint
from tests.planning.conftest import label


def test_photos_sizes_classes_and_void_are_counted(draw):
    folder = draw(
        [label(4, 10, 1, 1, 2), label(8, 6, 255, 255, 1), label(6, 20)],
        val=[label(3, 3), label(50, 50)],
    )
    data = fingerprint.read(folder)
    assert data.num_photos == {"train": 3, "val": 2}
    assert (data.median_size, data.max_size, data.num_sizes) == ((6, 10), (8, 20), 3)
    assert data.pixels.tolist() == [37 + 45 + 120, 3, 1]
    assert data.num_showing.tolist() == [3, 2, 1]
    assert data.shares.tolist() == pytest.approx([202 / 206, 3 / 206, 1 / 206])
    assert data.void_share == pytest.approx(2 / 208)


def test_a_class_that_no_training_photo_shows_is_refused_with_the_void_hint(draw):
    folder = draw([label(4, 4, *[1] * 8, *[255] * 8)], classes=["background", "cat"])
    (folder / "masks" / "train0.png").unlink()
    values = np.full((4, 4), 255, np.uint8)
    values[0] = 0
    Image.fromarray(values).save(folder / "masks" / "train0.png")
    with pytest.raises(DatasetError, match=r"(?s)class cat .*75\.0%.*255.*write 1 .*classes\.txt"):
        fingerprint.read(folder)


def drop_list(folder):
    (folder / "splits" / "val.txt").rename(folder / "splits" / "test.txt")


def drop_mask(folder):
    (folder / "masks" / "val0.png").unlink()


def drop_photo(folder):
    (folder / "images" / "train0.jpg").unlink()


def repeat_class(folder):
    (folder / "classes.txt").write_text("background\ncat\ncat\n")


def one_class(folder):
    (folder / "classes.txt").write_text("background\n")


def other_size(folder):
    Image.fromarray(label(5, 5)).save(folder / "masks" / "train0.png")


def unknown_value(folder):
    Image.fromarray(label(4, 4, 7)).save(folder / "masks" / "train0.png")


def no_photo(folder):
    (folder / "images" / "train0.jpg").write_bytes(b"text")


def photo_in_both_lists(folder):
    (folder / "splits" / "val.txt").write_text("val0\nimages/train0.jpg\n")


def no_folder(folder):
    (folder / "masks").rename(folder / "labels")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_list, r"no val\.txt.*test"),
        (drop_mask, r"masks/: val0"),
        (drop_photo, r"images/: train0"),
        (repeat_class, r"classes\.txt.*cat"),
        (one_class, r"classes\.txt.* 1 class"),
        (other_size, r"train0\.png.*\(5, 5\).*\(4, 4\)"),
        (unknown_value, r"train0\.png.* 7;.*0\.\.2"),
        (no_photo, r"train0\.jpg"),
        (photo_in_both_lists, r"train\.txt.*val\.txt.*: train0;"),
        (no_folder, r"no masks/"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused(draw, damage, message):
    folder = draw([label(4, 4, 1, 2)])
    damage(folder)
    with pytest.raises(DatasetError, match=message):
        fingerprint.read(folder)
