"""Galleries: the images that an evaluation leaves for the report."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ResultError
from pipeline.report import gallery
from pipeline.report.gallery import Seen


def seen(key: str, seed: int = 0, size: tuple[int, int] = (20, 30), kind: str = "JPEG") -> tuple[Seen, bytes]:
    random = np.random.Generator(np.random.PCG64(seed))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, kind)
    image = np.array(Image.open(file))
    label, prediction = random.integers(0, 3, (2, *size), dtype=np.uint8)
    label[:3] = 255
    confidence = random.integers(0, 256, size, dtype=np.uint8)
    return Seen(key, image, label, prediction, confidence), file.getvalue()


def test_a_gallery_gives_back_what_was_written_to_the_pixel_and_keeps_the_photos_bytes(tmp_path):
    shown = [seen("2007_000033"), seen("2007_000042", 1, (7, 9), "PNG")]
    gallery.write(tmp_path / "gallery", shown, "ab" * 32)
    opened = gallery.read(tmp_path / "gallery")
    assert opened.keys == ("2007_000033", "2007_000042")
    assert opened.model_sha256 == "ab" * 32
    for one, photo in shown:
        for expected, got in zip(one, opened[one.key], strict=True):
            assert np.array_equal(expected, got)
        suffix = "jpg" if one.key == "2007_000033" else "png"
        assert (tmp_path / "gallery" / f"{one.key}.{suffix}").read_bytes() == photo


@pytest.mark.parametrize("name", ["a.jpg", "a-label.png", "a-prediction.png", "a-confidence.png"])
@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_damaged_picture_is_named_with_the_stage_that_draws_it(tmp_path, name, content):
    folder = tmp_path / "gallery"
    gallery.write(folder, [seen("a")], "ab")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ResultError, match=r"gallery.* a .*`dvc repro evaluate`"):
        gallery.read(folder)["a"]


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"keys": 3}'])
def test_a_folder_without_its_list_is_no_gallery(tmp_path, text):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(ResultError, match=r"index\.json .*dvc repro evaluate"):
        gallery.read(tmp_path)


def test_a_gallery_keeps_the_users_own_names(tmp_path):
    names = {"cam_2_0001-ab": "cam 2/0001.JPG"}
    gallery.write(
        tmp_path / "gallery", [seen("cam_2_0001-ab"), seen("b")], "ab", lambda key: names.get(key, key)
    )
    assert gallery.read(tmp_path / "gallery").names == names


def test_galleries_of_different_images_are_refused(tmp_path):
    for name, key in (("fcn32s", "a"), ("fcn16s", "a"), ("fcn8s", "b")):
        gallery.write(tmp_path / name, [seen(key)], "ab")
    opened = [gallery.read(tmp_path / name) for name in ("fcn32s", "fcn16s", "fcn8s")]
    assert gallery.shared_keys(opened[:2]) == ("a",)
    with pytest.raises(ResultError, match=r"fcn32s .*fcn8s .*`dvc repro evaluate`"):
        gallery.shared_keys(opened)
