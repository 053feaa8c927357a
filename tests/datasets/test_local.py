"""pipeline/datasets/local.py: data sets that are on this machine, and archives unpacked side by side."""

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from pipeline.datasets import copying, local, published
from pipeline.errors import ArchiveError, DatasetError

VOC = {
    "VOCdevkit/VOC2012/JPEGImages/a.jpg": b"a photo",
    "VOCdevkit/VOC2012/SegmentationClass/a.png": b"its label",
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"a\n",
}
SBD = {
    "benchmark_RELEASE/dataset/img/b.jpg": b"another photo",
    "benchmark_RELEASE/dataset/cls/b.mat": b"its other label",
    "benchmark_RELEASE/dataset/train.txt": b"b\n",
}
FILES = VOC | SBD
UNUSED = {
    "VOCdevkit/VOC2012/Annotations/a.xml": b"boxes",
    "VOCdevkit/VOC2012/SegmentationObject/a.png": b"instances",
    "benchmark_RELEASE/dataset/inst/b.mat": b"instances",
    "holiday.jpg": b"a private photo",
    "benchmark.tgz": b"an archive",
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with both data sets, and files that segmentation does not read."""
    return write(tmp_path / "mine", FILES | UNUSED)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The folder to fill; neither it nor its parents exist yet."""
    return tmp_path / "data" / "local" / "raw"


# --- unpacked


def test_only_files_that_segmentation_reads_are_copied_and_the_copy_stands_alone(
    mine: Path, raw: Path, capsys
):
    raw.mkdir(parents=True)  # empty, which is as good as missing
    local.bring(mine, raw)
    assert read(mine) == FILES | UNUSED
    shutil.rmtree(mine)
    assert read(raw) == FILES
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    assert f"{mine / 'benchmark.tgz'} not unpacked" in capsys.readouterr().out


@pytest.mark.parametrize("top", local.TOPS)
def test_one_of_the_data_sets_is_enough(tmp_path: Path, raw: Path, top: str):
    files = {f"{top}/VOC2011/ImageSets/list.txt": b"a\n"}
    local.bring(write(tmp_path / "mine", files), raw)
    assert read(raw) == files


def test_links_are_followed_so_that_the_copy_stands_alone(tmp_path: Path, mine: Path, raw: Path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "VOCdevkit").symlink_to(mine / "VOCdevkit")
    local.bring(linked, raw)
    shutil.rmtree(mine)
    assert read(raw) == VOC


def test_a_folder_with_content_is_named_and_kept_as_it_is(mine: Path, raw: Path):
    write(raw, {"photo.jpg": b"older"})
    with pytest.raises(DatasetError, match=f"{raw} is not empty"):
        local.bring(mine, raw)
    assert read(raw.parent) == {"raw/photo.jpg": b"older"}


def test_a_file_that_cannot_be_copied_is_named_and_leaves_nothing_behind(mine: Path, raw: Path):
    dangling = mine / "VOCdevkit/VOC2012/JPEGImages/c.jpg"
    dangling.symlink_to(mine / "nowhere.jpg")
    with pytest.raises(DatasetError, match=rf"^data\.source\.local: 1 files .*No such file.*{dangling}"):
        local.bring(mine, raw)
    assert list(raw.parent.iterdir()) == []


def test_a_copy_that_is_stopped_leaves_nothing_behind(mine: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copying.shutil, "copy2", stopped)
    with pytest.raises(KeyboardInterrupt):
        local.bring(mine, raw)
    assert list(raw.parent.iterdir()) == []


def test_files_that_a_killed_copy_left_are_not_mixed_in(mine: Path, raw: Path):
    write(raw.parent, {".raw.partial/VOCdevkit/VOC2012/JPEGImages/half.jpg": b"ha"})
    local.bring(mine, raw)
    assert read(raw.parent) == {f"raw/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize(
    ("files", "content"),
    [
        (None, "no folder or archive"),
        ({}, "nothing"),
        ({"VOC2012/a": b"", "VOCdevkit.zip": b""}, "VOC2012, VOCdevkit.zip"),
        ({"VOCdevkit": b"a file of that name"}, "VOCdevkit"),
        ({f"{number}": b"" for number in range(12)}, "0, 1, 10, 11, 2, 3, 4, 5 and 4 more"),
    ],
)
def test_a_folder_without_the_data_sets_is_refused_with_its_content(
    tmp_path: Path, raw: Path, files: dict[str, bytes] | None, content: str
):
    if files is not None:
        write(tmp_path / "mine", files)
    with pytest.raises(DatasetError, match=r"^data\.source\.local: ") as caught:
        local.bring(tmp_path / "mine", raw)
    for fact in (str(tmp_path / "mine"), content, *local.TOPS):
        assert fact in str(caught.value)
    assert not raw.exists()


# --- archives


def test_a_folder_of_archives_is_unpacked_side_by_side(tmp_path: Path, raw: Path, capsys):
    packed(tmp_path / "mine" / "my-voc.tar", VOC)
    archive = packed(tmp_path / "mine" / "my-sbd.tgz", SBD)
    local.bring(tmp_path / "mine", raw)
    assert read(raw) == FILES
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in capsys.readouterr().out


def test_archives_that_share_folders_are_merged_and_of_a_file_in_both_the_later_one_stays(
    tmp_path: Path, raw: Path
):
    trainval = {"VOCdevkit/VOC2012/JPEGImages/a.jpg": b"a", "VOCdevkit/VOC2012/train.txt": b"first\n"}
    test = {"readme.txt": b"at the top", "VOCdevkit/VOC2012/train.txt": b"second\n"}
    archives = [packed(tmp_path / "1.tar", trainval), packed(tmp_path / "2.tar", test)]
    published.unpack(archives, raw)
    assert read(raw) == trainval | test


@pytest.mark.parametrize("name", published.CHECKSUMS)
def test_a_damaged_copy_of_a_published_archive_is_refused_with_both_checksums(
    tmp_path: Path, raw: Path, name: str
):
    archive = packed(tmp_path / "mine" / name, VOC)
    algorithm, _, digits = published.CHECKSUMS[name].partition(":")
    actual = hashlib.new(algorithm, archive.read_bytes()).hexdigest()
    with pytest.raises(ArchiveError, match=rf"^{archive}: .*{digits}.*{actual}"):
        local.bring(tmp_path / "mine", raw)
    assert not raw.exists()


def test_an_intact_copy_of_a_published_archive_is_unpacked(tmp_path: Path, raw: Path, monkeypatch):
    archive = packed(tmp_path / "benchmark.tgz", SBD)
    checksum = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    monkeypatch.setitem(published.CHECKSUMS, "benchmark.tgz", checksum)
    local.bring(archive, raw)
    assert read(raw) == SBD


def test_a_file_that_is_not_an_archive_leaves_nothing_behind(tmp_path: Path, raw: Path):
    write(tmp_path, {"mine.tar": b"no archive"})
    with pytest.raises(ArchiveError, match=r"mine\.tar: "):
        local.bring(tmp_path / "mine.tar", raw)
    assert not raw.exists()


def test_the_checksums_of_voc_and_sbd_are_those_torchvision_publishes():
    voc = {entry["filename"]: entry["md5"] for year, entry in DATASET_YEAR_DICT.items() if year != "2008"}
    expected = voc | {SBDataset.filename: SBDataset.md5}
    md5s = {name: text for name, text in published.CHECKSUMS.items() if text.startswith("md5:")}
    assert len(md5s) == 5
    assert md5s == {name: f"md5:{expected[name]}" for name in md5s}
