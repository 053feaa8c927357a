"""Galleries and confusion matrices: what an evaluation leaves for the report."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ResultError
from pipeline.evaluation import confusion
from pipeline.report import gallery
from pipeline.report.gallery import Seen


def seen(key: str, seed: int = 0, size: tuple[int, int] = (20, 30)) -> tuple[Seen, bytes]:
    random = np.random.Generator(np.random.PCG64(seed))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
    image = np.array(Image.open(file))
    label, prediction = random.integers(0, 3, (2, *size), dtype=np.uint8)
    label[:3] = 255
    confidence = random.integers(0, 256, size, dtype=np.uint8)
    return Seen(key, image, label, prediction, confidence), file.getvalue()


def test_a_gallery_gives_back_what_was_written_to_the_pixel_and_keeps_the_photos_bytes(tmp_path):
    shown = [seen("2007_000033"), seen("2007_000042", 1, (7, 9))]
    gallery.write(tmp_path / "gallery", shown, "ab" * 32)
    found = gallery.read(tmp_path / "gallery")
    assert found.keys == ("2007_000033", "2007_000042")
    assert found.model_sha256 == "ab" * 32
    for one, jpeg in shown:
        for expected, got in zip(one, found[one.key], strict=True):
            assert np.array_equal(expected, got)
        assert (tmp_path / "gallery" / f"{one.key}.jpg").read_bytes() == jpeg
    gallery.write(tmp_path / "gallery", shown[:1], "cd" * 32)  # over the old one
    assert len(list((tmp_path / "gallery").iterdir())) == 5


@pytest.mark.parametrize("name", ["a.jpg", "a-label.png", "a-prediction.png", "a-confidence.png"])
@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_damaged_picture_is_named_with_the_stage_that_draws_it(tmp_path, name, content):
    gallery.write(tmp_path, [seen("a")], "ab")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultError, match=r"the pictures of a cannot be read .*dvc repro evaluate"):
        gallery.read(tmp_path)["a"]


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"keys": 3}'])
def test_a_folder_without_its_list_is_no_gallery(tmp_path, text):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(ResultError, match=r"index\.json .*dvc repro evaluate"):
        gallery.read(tmp_path)


def test_galleries_of_different_images_are_refused(tmp_path):
    for name, key in (("fcn32s", "a"), ("fcn16s", "a"), ("fcn8s", "b")):
        gallery.write(tmp_path / name, [seen(key)], "ab")
    found = [gallery.read(tmp_path / name) for name in ("fcn32s", "fcn16s", "fcn8s")]
    assert gallery.shared_keys(found[:2]) == ("a",)
    with pytest.raises(ResultError, match=r"fcn32s and .*fcn8s show other images; run `dvc repro evaluate`"):
        gallery.shared_keys(found)


def test_counts_come_back_from_a_csv_whatever_the_classes_are_called(tmp_path):
    hist = np.array([[5, 0, 2**40], [1, 2, 3], [0, 0, 0]])
    confusion.write(tmp_path / "confusion.csv", hist, ["background", 'a "quoted", name', "line\nbreak"])
    assert np.array_equal(confusion.read(tmp_path / "confusion.csv"), hist)


@pytest.mark.parametrize("text", [None, "", "label,a,b\na,1,2\n", "label,a\na,x\n"])
def test_damaged_counts_are_named_with_the_stage_that_writes_them(tmp_path, text):
    if text is not None:
        (tmp_path / "confusion.csv").write_text(text)
    with pytest.raises(ResultError, match=r"confusion\.csv holds no counts .*dvc repro evaluate"):
        confusion.read(tmp_path / "confusion.csv")
