"""pipeline/datasets/local.py: data sets that lie on this machine, and archives' folders put together."""

import hashlib
import io
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from pipeline.datasets import local, published
from pipeline.errors import ArchiveError, DatasetError

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


# --- unpacked


def test_what_segmentation_reads_is_copied_and_nothing_else(mine: Path, raw: Path):
    local.bring(mine, raw)
    assert read(raw) == FILES
    assert read(mine) == FILES | UNUSED
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


@pytest.mark.parametrize("top", local.TOPS)
def test_one_of_the_data_sets_is_enough(tmp_path: Path, raw: Path, top: str):
    write(tmp_path / "mine", {f"{top}/VOC2011/ImageSets/list.txt": b"a\n"})
    local.bring(tmp_path / "mine", raw)
    assert read(raw) == {f"{top}/VOC2011/ImageSets/list.txt": b"a\n"}


def test_a_copy_does_not_change_when_the_original_does(mine: Path, raw: Path):
    local.bring(mine, raw)
    (mine / "VOCdevkit/VOC2012/JPEGImages/a.jpg").write_bytes(b"changed")
    assert read(raw) == FILES


def test_links_are_followed_so_that_the_copy_stands_alone(tmp_path: Path, mine: Path, raw: Path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "VOCdevkit").symlink_to(mine / "VOCdevkit")
    local.bring(linked, raw)
    shutil.rmtree(mine)
    assert read(raw) == {name: content for name, content in FILES.items() if name.startswith("VOCdevkit")}


def test_an_empty_folder_is_copied_into(mine: Path, raw: Path):
    raw.mkdir(parents=True)
    local.bring(mine, raw)
    assert read(raw) == FILES


def test_a_folder_with_content_is_kept_as_it_is(mine: Path, raw: Path):
    write(raw, {"photo.jpg": b"older"})
    with pytest.raises(DatasetError) as caught:
        local.bring(mine, raw)
    assert str(caught.value) == (
        f"data.source.local: {raw} is not empty; remove it, its content is copied anew"
    )
    assert read(raw.parent) == {"raw/photo.jpg": b"older"}


def test_a_file_that_cannot_be_copied_leaves_nothing_behind_and_is_named(mine: Path, raw: Path):
    dangling = mine / "VOCdevkit/VOC2012/JPEGImages/c.jpg"
    dangling.symlink_to(mine / "nowhere.jpg")
    expected = f"data.source.local: 1 files cannot be copied to {raw}, the first for this reason: "
    with pytest.raises(
        DatasetError, match=rf"^{re.escape(expected)}.*No such file.*{re.escape(str(dangling))}"
    ):
        local.bring(mine, raw)
    assert list(raw.parent.iterdir()) == []


def test_a_copy_that_is_stopped_leaves_nothing_behind(mine: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        local.bring(mine, raw)
    assert list(raw.parent.iterdir()) == []


def test_what_a_killed_copy_left_is_not_mixed_in(mine: Path, raw: Path):
    write(raw.parent, {".raw.building/VOCdevkit/VOC2012/JPEGImages/half.jpg": b"ha"})
    local.bring(mine, raw)
    assert read(raw.parent) == {f"raw/{name}": content for name, content in FILES.items()}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, raw: Path):
    with pytest.raises(DatasetError) as caught:
        local.bring(tmp_path / "mine", raw)
    assert str(caught.value) == (
        f"data.source.local: no folder or archive {tmp_path / 'mine'}; it must hold "
        "VOCdevkit, TrainVal or benchmark_RELEASE, or their archives"
    )


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({}, "nothing"),
        ({"VOC2012/a": b"", "VOCdevkit.zip": b""}, "VOC2012, VOCdevkit.zip"),
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
        local.bring(tmp_path / "mine", raw)
    assert str(caught.value) == (
        f"data.source.local: {tmp_path / 'mine'} holds {there}; "
        "expected VOCdevkit, TrainVal or benchmark_RELEASE as the archives unpack, or the archives"
    )
    assert not raw.exists()


# --- archives


def packed(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """An archive in `folder` that holds the files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / name


VOC = {name: content for name, content in FILES.items() if name.startswith("VOCdevkit")}
SBD = {name: content for name, content in FILES.items() if name.startswith("benchmark")}


def test_a_folder_of_archives_is_unpacked_side_by_side(tmp_path: Path, raw: Path, capsys):
    packed(tmp_path / "mine", "my-voc.tar", VOC)
    archive = packed(tmp_path / "mine", "my-sbd.tgz", SBD)
    local.bring(tmp_path / "mine", raw)
    assert read(raw) == FILES
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert f"{archive}: no checksum is published for that name; sha256 {found}\n" in capsys.readouterr().out


def test_a_single_archive_is_unpacked(tmp_path: Path, raw: Path):
    local.bring(packed(tmp_path, "my-voc.tar", VOC), raw)
    assert read(raw) == VOC


def test_where_folders_lie_beside_archives_the_folders_are_taken_and_it_is_said(
    mine: Path, raw: Path, capsys
):
    local.bring(mine, raw)
    assert read(raw) == FILES
    assert capsys.readouterr().out == (
        f"data.source.local: VOCdevkit, benchmark_RELEASE copied, {mine / 'benchmark.tgz'} not unpacked\n"
    )


@pytest.mark.parametrize("name", published.CHECKSUMS)
def test_a_damaged_copy_of_a_published_archive_is_refused_with_both_checksums(
    tmp_path: Path, raw: Path, name: str
):
    archive = packed(tmp_path / "mine", name, VOC)
    algorithm, _, digits = published.CHECKSUMS[name].partition(":")
    found = hashlib.new(algorithm, archive.read_bytes()).hexdigest()
    with pytest.raises(ArchiveError) as caught:
        local.bring(tmp_path / "mine", raw)
    assert str(caught.value).startswith(
        f"{archive}: expected {algorithm} {digits} as published, found {found};"
    )
    assert not raw.exists()


def test_a_whole_copy_of_a_published_archive_is_taken(tmp_path: Path, raw: Path, monkeypatch):
    archive = packed(tmp_path / "mine", "benchmark.tgz", SBD)
    checksum = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    monkeypatch.setitem(published.CHECKSUMS, "benchmark.tgz", checksum)
    local.bring(tmp_path / "mine", raw)
    assert read(raw) == SBD


def test_what_is_no_archive_leaves_nothing_behind(tmp_path: Path, raw: Path):
    write(tmp_path, {"mine.tar": b"no archive"})
    with pytest.raises(ArchiveError, match=r"mine\.tar: "):
        local.bring(tmp_path / "mine.tar", raw)
    assert not raw.exists()


def test_the_checksums_of_voc_and_sbd_are_those_torchvision_publishes():
    voc = {entry["filename"]: entry["md5"] for year, entry in DATASET_YEAR_DICT.items() if year != "2008"}
    torchvisions = voc | {SBDataset.filename: SBDataset.md5}
    ours = {name: text for name, text in published.CHECKSUMS.items() if text.startswith("md5:")}
    assert len(ours) == 5
    assert ours == {name: f"md5:{torchvisions[name]}" for name in ours}


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
