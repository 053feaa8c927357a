"""pipeline/sharding.py: tars and manifest written, stopped, written again, and recomputed by others' code."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.datasets import Sample
from pipeline.errors import ShardError
from pipeline.manifest import MANIFEST
from pipeline.shards import Shards, open_shards
from tests.small_shards import CLASSES, KEYS, PER_SHARD, draw, files_in, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder, for tests that only read."""
    return write(tmp_path_factory.mktemp("whole") / "train")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A good folder, for tests that damage it."""
    shutil.copytree(whole, tmp_path / "train")
    return tmp_path / "train"


@pytest.fixture(scope="module")
def rows(whole: Path) -> list[dict[str, Any]]:
    return pq.read_table(whole / MANIFEST).to_pylist()


# --- the same bytes each time


def test_two_writes_give_the_same_bytes(whole: Path, tmp_path: Path):
    assert files_in(write(tmp_path / "again" / "train")) == files_in(whole)


def test_the_order_of_the_keys_does_not_matter(whole: Path, tmp_path: Path):
    assert files_in(write(tmp_path / "train", KEYS[::-1])) == files_in(whole)


def test_another_seed_gives_another_order_of_the_same_samples(whole: Path, tmp_path: Path):
    one, other = open_shards(whole), open_shards(write(tmp_path / "train", seed=4))
    assert one.keys != other.keys
    assert one.digest != other.digest

    def samples(opened: Shards) -> dict[str, tuple[bytes, bytes]]:
        return {key: opened.read(index) for index, key in enumerate(opened.keys)}

    assert samples(one) == samples(other)


def test_a_key_is_shuffled_away_from_its_neighbours(tmp_path: Path):
    """VOC's ids begin with the year: in their own order a shard would be of one year."""
    keys = [f"2007_{number:06d}" for number in range(200)]
    small = draw(keys[0])
    opened = open_shards(write(tmp_path / "train", keys, lambda key: Sample(key, small.jpeg, small.label)))
    steps = np.abs(np.diff([keys.index(key) for key in opened.keys]))
    assert sorted(opened.keys) == keys
    assert steps.mean() == pytest.approx(200 / 3, rel=0.2)  # of a random permutation: (n + 1) / 3


# --- what is in them, by other means


def test_the_shards_are_of_the_size_asked_for_and_nothing_else_is_there(
    whole: Path, rows: list[dict[str, Any]]
):
    assert sorted(files_in(whole)) == [
        MANIFEST,
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-000002.tar",
    ]
    names = [row["shard"] for row in rows]
    assert [names.count(f"shard-00000{number}.tar") for number in range(3)] == [3, 3, 1]


def test_every_row_of_the_manifest_is_what_the_tars_hold(whole: Path, rows: list[dict[str, Any]]):
    expected = []
    for path in sorted(whole.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            data = [tar.extractfile(member).read() for member in members]  # pyright: ignore
        for place in range(0, len(members), 2):
            (jpg, png), (jpeg, mask) = members[place : place + 2], data[place : place + 2]
            label = np.asarray(Image.open(io.BytesIO(mask)))
            with Image.open(io.BytesIO(jpeg)) as photo:
                assert photo.size == label.shape[::-1]
                mode, rgb = photo.mode, np.asarray(photo.convert("RGB"))
            seen = f"{rgb.shape[0]} {rgb.shape[1]} ".encode() + rgb.tobytes()
            assert (Path(jpg.name).stem, jpg.name[-4:], png.name[-4:]) == (
                Path(png.name).stem,
                ".jpg",
                ".png",
            )
            expected.append(
                {
                    "key": Path(jpg.name).stem,
                    "split": "train",
                    "shard": path.name,
                    "jpg_offset": jpg.offset_data,
                    "jpg_size": jpg.size,
                    "png_offset": png.offset_data,
                    "png_size": png.size,
                    "jpg_sha256": hashlib.sha256(jpeg).digest(),
                    "png_sha256": hashlib.sha256(mask).digest(),
                    "height": label.shape[0],
                    "width": label.shape[1],
                    "mode": mode,
                    "pixel_sha256": hashlib.sha256(seen).digest(),
                    "class_pixels": [int((label == index).sum()) for index in range(len(CLASSES))],
                    "void_pixels": int((label == 255).sum()),
                }
            )
    assert rows == expected
    assert sorted(row["key"] for row in rows) == list(KEYS)
    for row in rows:
        assert sum(row["class_pixels"]) + row["void_pixels"] == row["height"] * row["width"]


def test_offsets_find_the_very_bytes_in_the_file(whole: Path, rows: list[dict[str, Any]]):
    for row in rows:
        shard = (whole / row["shard"]).read_bytes()
        assert shard[row["jpg_offset"] :][: row["jpg_size"]] == draw(row["key"]).jpeg


def test_the_manifest_says_what_every_shard_weighs_and_hashes_to(whole: Path):
    header = json.loads(pq.read_metadata(whole / MANIFEST).metadata[b"fcn"])
    assert header.pop("seal") != "0" * 64
    assert header == {
        "format": "fcn-shards/1",
        "split": "train",
        "classes": list(CLASSES),
        "shards": [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files_in(whole).items()
            if name != MANIFEST
        ],
        "refused": [],
    }


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset 1.0.2 leaves them to the collector
def test_webdataset_reads_the_same_keys_and_bytes_in_the_same_order(whole: Path):
    urls = [str(path) for path in sorted(whole.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = open_shards(whole)
    assert [sample["__key__"] for sample in theirs] == ours.keys
    assert [(sample["jpg"], sample["png"]) for sample in theirs] == [ours.read(i) for i in range(len(ours))]


def test_jpeg_bytes_pass_untouched_and_labels_keep_their_values(whole: Path):
    opened = open_shards(whole)
    for index, key in enumerate(opened.keys):
        jpeg, png = opened.read(index)
        assert jpeg == draw(key).jpeg
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), draw(key).label)


def test_members_hold_no_time_owner_or_permission_of_this_machine(whole: Path):
    for path in whole.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
                assert member.isreg()


@pytest.mark.parametrize("keys", [[], [KEYS[0], KEYS[1], KEYS[0]]])
def test_no_sample_at_all_or_one_twice_is_a_mistake_of_the_caller(tmp_path: Path, keys: list[str]):
    with pytest.raises(AssertionError):
        write(tmp_path / "train", keys)
    assert list(tmp_path.iterdir()) == []


# --- all or nothing


def failing_at(call: int, error: BaseException) -> Callable[[str], Sample]:
    """A loader whose call number `call` (from 1) fails."""
    calls: list[str] = []

    def load(key: str) -> Sample:
        calls.append(key)
        if len(calls) == call:
            raise error
        return draw(key)

    return load


@pytest.mark.parametrize("call", [1, 3, 4, 7])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_writer_that_is_stopped_leaves_nothing_and_goes_on_from_its_finished_shards(
    whole: Path, tmp_path: Path, call: int, error: BaseException
):
    with pytest.raises((ShardError, KeyboardInterrupt)):
        write(tmp_path / "train", load=failing_at(call, error))
    assert not (tmp_path / "train").exists()
    loaded: list[str] = []

    def load(key: str) -> Sample:
        loaded.append(key)
        return draw(key)

    assert files_in(write(tmp_path / "train", load=load)) == files_in(whole)
    assert len(loaded) == len(KEYS) - (call - 1) // PER_SHARD * PER_SHARD
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_an_older_folder_stays_whole_while_a_newer_one_is_written(folder: Path):
    before = files_in(folder)

    def load(key: str) -> Sample:
        assert files_in(folder) == before
        return draw(key)

    write(folder, load=load, seed=9)
    assert files_in(folder).keys() == before.keys()
    assert files_in(folder) != before
    assert open_shards(folder).keys != open_shards(write(folder.parent / "seed3")).keys
    assert sorted(path.name for path in folder.parent.iterdir()) == ["seed3", "train"]


def test_an_older_folder_outlives_a_loader_that_fails(folder: Path):
    before = files_in(folder)
    with pytest.raises(KeyboardInterrupt):
        write(folder, load=failing_at(5, KeyboardInterrupt()), seed=9)
    assert files_in(folder) == before
    assert len(open_shards(folder)) == len(KEYS)


def test_fewer_samples_leave_no_shard_of_the_older_folder(folder: Path):
    write(folder, KEYS[:2])
    assert sorted(files_in(folder)) == [MANIFEST, "shard-000000.tar"]
    assert len(open_shards(folder)) == 2


def test_what_a_killed_writer_left_does_not_get_into_the_result(whole: Path, tmp_path: Path):
    for left in (".train.sharding/new", ".train.sharding/unfinished.killed", ".train.sharding/records"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "shard-000009.tar").write_bytes(b"half")
    assert files_in(write(tmp_path / "train")) == files_in(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
