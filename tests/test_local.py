"""pipeline/datasets/local.py: data sets that lie on this machine, and archives' folders put together."""

import os
import re
import shutil
from pathlib import Path

import pytest

from pipeline.datasets import local, published
from pipeline.errors import DatasetError

FILES = {
    "VOCdevkit/VOC2012/JPEGImages/a.jpg": b"a photo",
    "VOCdevkit/VOC2012/SegmentationClass/a.png": b"its label",
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"a\n",
    "benchmark_RELEASE/dataset/img/b.jpg": b"another photo",
    "benchmark_RELEASE/dataset/cls/b.mat": b"its other label",
    "benchmark_RELEASE/dataset/train.txt": b"b\n",
}
UNUSED = {
    "VOCdevkit/VOC2012/Annotations/a.xml": b"boxes",
    "VOCdevkit/VOC2012/SegmentationObject/a.png": b"instances",
    "benchmark_RELEASE/dataset/inst/b.mat": b"instances",
    "holiday.jpg": b"a photo of nobody's business",
    "benchmark.tgz": b"an archive",
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with both data sets and things that segmentation does not read."""
    return write(tmp_path / "mine", FILES | UNUSED)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Where the copy goes; neither it nor its parents are there yet."""
    return tmp_path / "data" / "local" / "raw"


# --- copy


def test_what_segmentation_reads_is_copied_and_nothing_else(mine: Path, raw: Path):
    local.copy(mine, raw)
    assert read(raw) == FILES
    assert read(mine) == FILES | UNUSED
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


@pytest.mark.parametrize("top", local.TOPS)
def test_one_of_the_data_sets_is_enough(tmp_path: Path, raw: Path, top: str):
    write(tmp_path / "mine", {f"{top}/VOC2011/ImageSets/list.txt": b"a\n"})
    local.copy(tmp_path / "mine", raw)
    assert read(raw) == {f"{top}/VOC2011/ImageSets/list.txt": b"a\n"}


def test_a_copy_does_not_change_when_the_original_does(mine: Path, raw: Path):
    local.copy(mine, raw)
    (mine / "VOCdevkit/VOC2012/JPEGImages/a.jpg").write_bytes(b"changed")
    assert read(raw) == FILES


def test_links_are_followed_so_that_the_copy_stands_alone(tmp_path: Path, mine: Path, raw: Path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "VOCdevkit").symlink_to(mine / "VOCdevkit")
    local.copy(linked, raw)
    shutil.rmtree(mine)
    assert read(raw) == {name: content for name, content in FILES.items() if name.startswith("VOCdevkit")}


def test_an_empty_folder_is_copied_into(mine: Path, raw: Path):
    raw.mkdir(parents=True)
    local.copy(mine, raw)
    assert read(raw) == FILES


def test_a_folder_with_content_is_kept_as_it_is(mine: Path, raw: Path):
    write(raw, {"photo.jpg": b"older"})
    with pytest.raises(DatasetError) as caught:
        local.copy(mine, raw)
    assert str(caught.value) == (
        f"data.source.local: {raw} is not empty; remove it, its content is copied anew"
    )
    assert read(raw.parent) == {"raw/photo.jpg": b"older"}


def test_a_file_that_cannot_be_copied_leaves_nothing_behind_and_is_named(mine: Path, raw: Path):
    dangling = mine / "VOCdevkit/VOC2012/JPEGImages/c.jpg"
    dangling.symlink_to(mine / "nowhere.jpg")
    expected = f"data.source.local: 1 files of {mine} cannot be copied to {raw}, the first for this reason: "
    with pytest.raises(
        DatasetError, match=rf"^{re.escape(expected)}.*No such file.*{re.escape(str(dangling))}"
    ):
        local.copy(mine, raw)
    assert list(raw.parent.iterdir()) == []


def test_a_copy_that_is_stopped_leaves_nothing_behind(mine: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        local.copy(mine, raw)
    assert list(raw.parent.iterdir()) == []


def test_what_a_killed_copy_left_is_not_mixed_in(mine: Path, raw: Path):
    write(raw.parent, {".raw.building/VOCdevkit/VOC2012/JPEGImages/half.jpg": b"ha"})
    local.copy(mine, raw)
    assert read(raw.parent) == {f"raw/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize("is_file", [False, True])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, raw: Path, is_file: bool):
    if is_file:
        write(tmp_path, {"mine": b""})
    with pytest.raises(DatasetError) as caught:
        local.copy(tmp_path / "mine", raw)
    assert str(caught.value) == (
        f"data.source.local: no folder {tmp_path / 'mine'}; give the path of a folder that holds "
        "VOCdevkit, TrainVal or benchmark_RELEASE"
    )


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({}, "nothing"),
        ({"VOC2012/a": b"", "VOCdevkit.tar": b""}, "VOC2012, VOCdevkit.tar"),
        ({"VOCdevkit": b"a file of that name"}, "VOCdevkit"),
        ({f"{number}": b"" for number in range(12)}, "0, 1, 10, 11, 2, 3, 4, 5"),
    ],
)
def test_a_folder_without_the_data_sets_is_told_what_it_holds(
    tmp_path: Path, raw: Path, files: dict[str, bytes], there: str
):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", files)
    with pytest.raises(DatasetError) as caught:
        local.copy(tmp_path / "mine", raw)
    assert str(caught.value) == (
        f"data.source.local: {tmp_path / 'mine'} holds {there}; "
        "expected VOCdevkit, TrainVal or benchmark_RELEASE as the archives unpack"
    )
    assert not raw.exists()


# --- merge


def test_archives_that_share_folders_are_put_together(tmp_path: Path, raw: Path):
    trainval = {"VOCdevkit/VOC2012/JPEGImages/a.jpg": b"a", "VOCdevkit/VOC2012/train.txt": b"a\n"}
    test = {"VOCdevkit/VOC2012/JPEGImages/t.jpg": b"t", "readme.txt": b"at the top"}
    for name, files in (("trainval", trainval), ("test", test)):
        published.merge(write(tmp_path / f"{name}.unpacked", files), raw)
        assert not (tmp_path / f"{name}.unpacked").exists()
    assert read(raw) == trainval | test


def test_an_archive_with_a_file_at_its_top_can_be_the_first(tmp_path: Path, raw: Path):
    published.merge(write(tmp_path / "unpacked", {"readme.txt": b"first"}), raw)
    assert read(raw) == {"readme.txt": b"first"}


def test_empty_folders_of_an_archive_are_kept(tmp_path: Path, raw: Path):
    (tmp_path / "unpacked" / "VOCdevkit" / "local").mkdir(parents=True)
    published.merge(tmp_path / "unpacked", raw)
    assert (raw / "VOCdevkit" / "local").is_dir()


def test_of_a_file_in_two_archives_the_later_one_stays(tmp_path: Path, raw: Path):
    for content in (b"first", b"second"):
        published.merge(write(tmp_path / "unpacked", {"VOCdevkit/list.txt": content}), raw)
    assert read(raw) == {"VOCdevkit/list.txt": b"second"}
