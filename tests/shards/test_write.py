"""pipeline/shards/write.py: tars and manifest written, stopped, written again, and recomputed by others' code."""

import fcntl
import hashlib
import io
import json
import os
import resource
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.cluster import ray_workers
from pipeline.errors import DatasetError, ShardError
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import link_shards
from pipeline.storage import Folder
from tests import s3_server
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
    opened = open_shards(
        write(tmp_path / "train", keys, lambda key: Sample.checked(key, small.jpeg, small.label))
    )
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
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
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


def test_a_changed_source_is_written_anew_and_the_rest_is_kept(tmp_path: Path):
    """As when an image was mended between a stop and the next try."""
    stamps, loaded = dict.fromkeys(KEYS, "1"), []

    def load(key: str) -> Sample:
        loaded.append(key)
        if len(loaded) == 7:
            raise KeyboardInterrupt
        return draw(key)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "train", load=load, stamp=stamps.__getitem__)
    first, second = loaded[:3], loaded[3:6]
    stamps[first[1]] = "2"
    del loaded[:]
    loaded += ["six"]  # so that none is the seventh
    write(tmp_path / "train", load=lambda key: loaded.append(key) or draw(key), stamp=stamps.__getitem__)
    assert set(first) < set(loaded)
    assert not set(second) & set(loaded)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("kind", ["new/shard-000000.tar", "records/000000.parquet"])
def test_a_finished_shard_that_was_damaged_before_the_rerun_is_written_again(
    whole: Path, tmp_path: Path, kind: str, damage: str
):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "train", load=failing_at(7, KeyboardInterrupt()))
    path = tmp_path / ".train.sharding" / kind
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    assert files_in(write(tmp_path / "train")) == files_in(whole)


def test_other_options_keep_nothing_of_a_stopped_writer(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "train", load=failing_at(7, KeyboardInterrupt()))
    write(tmp_path / "train", samples_per_shard=6, seed=8)
    assert files_in(tmp_path / "train") == files_in(
        write(tmp_path / "fresh" / "train", samples_per_shard=6, seed=8)
    )


def test_a_second_writer_waits_until_the_first_has_ended(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / ".train.sharding").mkdir()
    with (tmp_path / ".train.sharding" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = Thread(target=write, args=[tmp_path / "train"])
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert not (tmp_path / ".train.sharding" / "records").exists()
    writer.join()
    assert "another process writes the same shards, waiting" in capfd.readouterr().err
    assert files_in(tmp_path / "train") == files_in(whole)


# --- images that cannot be used


def refusing(*refused: str) -> Callable[[str], Sample]:
    def load(key: str) -> Sample:
        if key in refused:
            raise DatasetError(f"voc {key}: {os.getcwd()}/raw/{key}.jpg: damaged JPEG")
        return draw(key)

    return load


def test_all_that_cannot_be_used_is_told_at_once_and_nothing_is_written(whole: Path, tmp_path: Path):
    with pytest.raises(DatasetError) as caught:
        write(tmp_path / "train", load=refusing(KEYS[0], KEYS[3], KEYS[6]))
    first, *reasons = str(caught.value).splitlines()
    assert first == (
        "train: 3 images cannot be used; mend or replace them, or set data.allow_partial to leave them out:"
    )
    assert sorted(reasons) == [f"  voc {KEYS[i]}: raw/{KEYS[i]}.jpg: damaged JPEG" for i in (0, 3, 6)]
    assert not (tmp_path / "train").exists()

    def stamp(key: str) -> str:
        return "mended" if key in (KEYS[0], KEYS[3], KEYS[6]) else key

    assert files_in(write(tmp_path / "train", stamp=stamp)) == files_in(whole)


def test_eight_reasons_are_told_and_how_many_more_there_are(tmp_path: Path):
    keys = [f"2007_{number:06d}" for number in range(20)]
    with pytest.raises(DatasetError) as caught:
        write(tmp_path / "train", keys, load=refusing(*keys[:11]))
    lines = str(caught.value).splitlines()
    assert "11 images cannot be used" in lines[0]
    assert (len(lines), lines[-1]) == (10, "  and 3 more")


def test_images_left_out_are_counted_and_recorded(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write(tmp_path / "train", load=refusing(KEYS[2], KEYS[5]), allow_partial=True)
    opened = open_shards(tmp_path / "train")
    assert sorted(opened.keys) == sorted(set(KEYS) - {KEYS[2], KEYS[5]})
    assert sorted(opened.header["refused"]) == [
        [KEYS[i], f"voc {KEYS[i]}: raw/{KEYS[i]}.jpg: damaged JPEG"] for i in (2, 5)
    ]
    assert "train: 2 images refused and left out (data.allow_partial):" in capfd.readouterr().out


def test_a_shard_of_which_nothing_is_left_is_not_there(tmp_path: Path):
    write(tmp_path / "train", load=refusing(KEYS[2]), allow_partial=True, samples_per_shard=1)
    opened = open_shards(tmp_path / "train")
    assert (len(opened), len(opened.header["shards"])) == (6, 6)


@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path, allow_partial: bool):
    with pytest.raises(DatasetError, match="train: 7 images cannot be used; mend or replace them:"):
        write(tmp_path / "train", load=refusing(*KEYS), allow_partial=allow_partial)
    assert not (tmp_path / "train").exists()


# --- a full disk


def test_a_full_disk_is_one_sentence_and_what_was_finished_is_kept(whole: Path, tmp_path: Path):
    """RLIMIT_FSIZE ends a write as a full disk does, at any byte of any file."""
    limits, seen = resource.getrlimit(resource.RLIMIT_FSIZE), 0
    largest = max(len(data) for data in files_in(whole).values())
    for limit in [*range(100, largest, largest // 12), largest - 1]:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(ShardError, match="File too large; finished shards are kept there"):
                write(tmp_path / "train")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        seen += 1
        assert not (tmp_path / "train").exists()
    assert seen > 10
    assert files_in(write(tmp_path / "train")) == files_in(whole)


# --- many processes, and another place


class Disc(NamedTuple):
    """A loader that other processes can be sent; it keeps an account of what it was asked for."""

    account: Path

    def load(self, key: str) -> Sample:
        with self.account.open("a") as file:
            file.write(f"{key} {os.getpid()}\n")
        return draw(key)


def test_ray_workers_write_the_same_bytes_and_share_the_work(tmp_path: Path):
    keys = [f"2007_{number:06d}" for number in range(40)]
    alone = files_in(write(tmp_path / "alone", keys))
    account = tmp_path / "account"
    with ray_workers.tasks(2) as run:
        write(tmp_path / "train", keys, load=Disc(account).load, run=run)
        assert files_in(tmp_path / "train") == alone
        asked = [line.split() for line in account.read_text().splitlines()]
        assert sorted(key for key, _ in asked) == keys
        assert len({process for _, process in asked} - {str(os.getpid())}) == 2
        with pytest.raises(DatasetError, match="train: 1 images cannot be used"):
            write(tmp_path / "no", keys, load=refusing(keys[0]), run=run)
        (tmp_path / ".gone.sharding").mkdir()
        (tmp_path / ".gone.sharding" / "records").write_text("a file where a folder must be")
        with pytest.raises(ShardError, match="File exists"):
            write(tmp_path / "gone", keys, run=run)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server.s3_server() as url:
        yield url


def in_bucket(where: str) -> dict[str, bytes]:
    folder = Folder(where)
    return {name: folder.read(name) for name in sorted(folder.list())}


def test_a_bucket_holds_the_same_bytes_as_a_folder(bucket: str, whole: Path, tmp_path: Path):
    where = f"{bucket}/same/train"
    for _ in range(2):  # the second time in the first's place
        write_shards_to(where, tmp_path)
        assert in_bucket(where) == files_in(whole)
    assert in_bucket(f"{where}.partial") == {}
    opened, here = open_shards(where), open_shards(whole)
    assert opened.keys == here.keys
    assert [opened.read(i) for i in range(7)] == [here.read(i) for i in range(7)]


def write_shards_to(where: str, tmp_path: Path, **options: Any) -> None:
    write(where, work=tmp_path / "work", **options)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("call", [1, 5, 7])
def test_a_writer_to_a_bucket_goes_on_where_it_was_stopped(
    bucket: str, whole: Path, tmp_path: Path, call: int
):
    where = f"{bucket}/stopped{call}/train"
    with pytest.raises(KeyboardInterrupt):
        write_shards_to(where, tmp_path, load=failing_at(call, KeyboardInterrupt()))
    assert in_bucket(where) == {}
    account = tmp_path / "account"
    write_shards_to(where, tmp_path, load=Disc(account).load)
    assert in_bucket(where) == files_in(whole)
    assert len(account.read_text().splitlines()) == len(KEYS) - (call - 1) // PER_SHARD * PER_SHARD


def test_a_linked_folder_opens_the_shards_of_the_bucket(bucket: str, whole: Path, tmp_path: Path):
    where = f"{bucket}/linked/train"
    write_shards_to(where, tmp_path)
    link_shards(where, tmp_path / "train")
    assert {path.name for path in (tmp_path / "train").iterdir()} == {MANIFEST, "location"}
    opened = open_shards(tmp_path / "train", split="train")
    assert opened.folder == where
    assert opened.read(3) == open_shards(whole).read(3)
    write_shards_to(where, tmp_path, seed=9)  # by somebody else
    with pytest.raises(ShardError, match=f"{where} holds other shards than {tmp_path / 'train'} speaks of"):
        open_shards(tmp_path / "train")


def test_a_forked_process_reads_from_the_bucket_too(bucket: str, whole: Path, tmp_path: Path):
    """As a loader's do."""
    where = f"{bucket}/forked/train"
    write_shards_to(where, tmp_path)
    opened = open_shards(where)
    opened.read(0)
    with get_context("fork").Pool(2) as pool:
        found = pool.map(partial(files_of, opened), range(7))
    assert found == [files_of(open_shards(whole), i) for i in range(7)]


def files_of(shards: Shards, index: int) -> list[bytes]:
    """Memory of another process does not come here by itself."""
    return [bytes(file) for file in shards.read(index)]


def test_damage_in_a_bucket_is_found(bucket: str, tmp_path: Path):
    where = f"{bucket}/damaged/train"
    write_shards_to(where, tmp_path)
    data = bytearray(Folder(where).read("shard-000001.tar"))
    data[700] ^= 8
    (tmp_path / "bad").write_bytes(data)
    opened = open_shards(where)
    Folder(where).put(tmp_path / "bad", "shard-000001.tar")
    with pytest.raises(ShardError, match=f"{where}/shard-000001.tar: sha256"):
        open_shards(where)
    with pytest.raises(ShardError, match="is not what the manifest recorded"):
        opened.read(3)
