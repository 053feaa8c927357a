"""pipeline/shards/write.py: tars and manifest written, stopped, written again, and read by other code."""

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.cluster import ray_workers
from pipeline.errors import DatasetError, ShardError, UserError
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import link_shards
from pipeline.storage import Folder
from tests.small_shards import CLASSES, KEYS, PER_SHARD, draw, files_in, write

LOCK = ".train.sharding.lock"  # stays beside the shards


# --- the same bytes each time


@pytest.mark.parametrize("keys", [KEYS, KEYS[::-1]])
def test_the_same_keys_in_any_order_give_the_same_bytes(whole: Path, tmp_path: Path, keys: list[str]):
    assert files_in(write(tmp_path / "train", keys)) == files_in(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"train", LOCK}


def test_another_seed_gives_another_order_of_the_same_samples(whole: Path, tmp_path: Path):
    one, other = open_shards(whole), open_shards(write(tmp_path / "train", seed=4))
    assert one.keys != other.keys
    assert one.digest != other.digest

    def samples(shards: Shards) -> dict[str, tuple[memoryview, memoryview]]:
        return {key: shards.read(index) for index, key in enumerate(shards.keys)}

    assert samples(one) == samples(other)


def test_a_key_is_shuffled_away_from_its_neighbours(tmp_path: Path):
    """VOC's ids begin with the year: in their own order a shard would be of one year."""
    keys = [f"2007_{number:06d}" for number in range(200)]
    small = draw(keys[0])
    shards = open_shards(
        write(tmp_path / "train", keys, lambda key: Sample.checked(key, small.image, small.label))
    )
    steps = np.abs(np.diff([keys.index(key) for key in shards.keys]))
    assert sorted(shards.keys) == keys
    assert steps.mean() == pytest.approx(200 / 3, rel=0.2)  # of a random permutation: (n + 1) / 3


@pytest.mark.parametrize("keys", [[], [KEYS[0], KEYS[1], KEYS[0]]])
def test_no_sample_at_all_or_one_twice_is_a_mistake_of_the_caller(tmp_path: Path, keys: list[str]):
    with pytest.raises(AssertionError):
        write(tmp_path / "train", keys)
    assert list(tmp_path.iterdir()) == []


# --- the content, by other means


@pytest.mark.parametrize(
    "key_length", [11, 96, 97, 150]
)  # over 100 characters a name needs a header of its own
def test_a_shard_has_the_bytes_that_tarfile_writes(tmp_path: Path, key_length: int):
    keys = [key.rjust(key_length, "k") for key in KEYS]
    shards = open_shards(write(tmp_path / "train", keys, samples_per_shard=len(keys)))
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w") as tar:
        for key in shards.keys:
            for kind, data in (("jpg", draw(key).image), ("png", draw(key).png)):
                member = tarfile.TarInfo(f"{key}.{kind}")  # its defaults: 1970, no owner, mode 0o644
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert (tmp_path / "train" / "shard-000000.tar").read_bytes() == expected.getvalue()


def test_every_row_of_the_manifest_describes_the_tars_members(whole: Path):
    expected = []
    for path in sorted(whole.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            data = [tar.extractfile(member).read() for member in members]  # pyright: ignore
        for i in range(0, len(members), 2):
            (jpg, png), (jpeg, mask) = members[i : i + 2], data[i : i + 2]
            label = np.asarray(Image.open(io.BytesIO(mask)))
            with Image.open(io.BytesIO(jpeg)) as photo:
                mode, rgb = photo.mode, np.asarray(photo.convert("RGB"))
            pixels = f"{rgb.shape[0]} {rgb.shape[1]} ".encode() + rgb.tobytes()
            key = jpg.name.removesuffix(".jpg")
            assert png.name == f"{key}.png"
            expected.append(
                {
                    "key": key,
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
                    "pixel_sha256": hashlib.sha256(pixels).digest(),
                    "class_pixels": [int((label == index).sum()) for index in range(len(CLASSES))],
                    "void_pixels": int((label == 255).sum()),
                }
            )
    rows = pq.read_table(whole / MANIFEST).to_pylist()
    assert rows == expected
    assert sorted(row["key"] for row in rows) == list(KEYS)
    assert [row["shard"][:-4] for row in rows] == [f"shard-00000{i // PER_SHARD}" for i in range(7)]


def test_the_header_lists_size_and_sha256_of_every_shard(whole: Path):
    header = json.loads(pq.read_metadata(whole / MANIFEST).metadata[b"fcn"])
    del header["seal"]
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


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset 1.0.2 leaves its files open
def test_plain_webdataset_reads_the_same_samples_in_the_same_order_and_labels_as_indices(whole: Path):
    """As docs/shards.md shows it."""
    urls = [str(path) for path in sorted(whole.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == open_shards(whole).keys
    for sample in samples:
        expected = draw(sample["__key__"])
        label = np.array(Image.open(io.BytesIO(sample["png"])))
        assert sample["jpg"] == expected.image
        assert np.array_equal(label, expected.label)


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
    assert {path.name for path in tmp_path.iterdir()} == {"train", LOCK}


def test_an_older_folder_stays_whole_until_a_newer_one_replaces_it(folder: Path):
    before = files_in(folder)
    with pytest.raises(KeyboardInterrupt):
        write(folder, load=failing_at(5, KeyboardInterrupt()), seed=9)
    assert files_in(folder) == before

    def load(key: str) -> Sample:
        assert files_in(folder) == before
        return draw(key)

    write(folder, KEYS[:2], load=load, seed=9)
    assert sorted(files_in(folder)) == [MANIFEST, "shard-000000.tar"]
    assert sorted(open_shards(folder).keys) == sorted(KEYS[:2])


def test_files_that_a_killed_writer_left_do_not_get_into_the_result(whole: Path, tmp_path: Path):
    for left in ("new/shard-000009.tar", "records/000009.parquet", ".shard-000001.tar.7.partial"):
        path = tmp_path / ".train.sharding" / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert files_in(write(tmp_path / "train")) == files_in(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"train", LOCK}


def test_after_a_stop_a_changed_source_is_written_again_and_the_rest_is_kept(tmp_path: Path):
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
    options = {"samples_per_shard": 6, "seed": 8}
    assert files_in(write(tmp_path / "train", **options)) == files_in(write(tmp_path / "new", **options))


def test_a_second_writer_waits_until_the_first_has_ended(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.files import lock\n"
        "with lock(Path(sys.argv[1]), ''):\n"
        "    print('held', flush=True); time.sleep(1); assert not Path(sys.argv[2]).exists()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / LOCK), str(tmp_path / "train")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        write(tmp_path / "train")
        assert first.wait(timeout=10) == 0
    assert f"process {first.pid} on " in capfd.readouterr().err
    assert files_in(tmp_path / "train") == files_in(whole)


def test_a_full_disk_is_named_and_finished_shards_are_kept(whole: Path, tmp_path: Path):
    """RLIMIT_FSIZE ends a write as a full disk does, at any byte of any file."""
    limits, num_limits = resource.getrlimit(resource.RLIMIT_FSIZE), 0
    largest = max(len(data) for data in files_in(whole).values())
    for limit in [10, *range(100, largest, largest // 12), largest - 1]:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(ShardError, match=r"File too large.*\.train\.sharding"):
                write(tmp_path / "train")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        num_limits += 1
        assert not (tmp_path / "train").exists()
    assert num_limits > 10
    assert files_in(write(tmp_path / "train")) == files_in(whole)


# --- images that cannot be used


def refusing(*refused: str) -> Callable[[str], Sample]:
    def load(key: str) -> Sample:
        if key in refused:
            raise DatasetError(f"voc {key}: {os.getcwd()}/raw/{key}.jpg: damaged JPEG")
        return draw(key)

    return load


def test_all_unusable_images_are_reported_at_once_and_nothing_is_written(whole: Path, tmp_path: Path):
    refused = {KEYS[0], KEYS[3], KEYS[6]}
    with pytest.raises(DatasetError, match=r"train: 3 images .*data\.allow_partial") as caught:
        write(tmp_path / "train", load=refusing(*refused))
    _, *reasons = str(caught.value).splitlines()
    assert sorted(reasons) == [f"  voc {key}: raw/{key}.jpg: damaged JPEG" for key in sorted(refused)]
    assert not (tmp_path / "train").exists()
    stamp = {key: "corrected" if key in refused else key for key in KEYS}
    assert files_in(write(tmp_path / "train", stamp=stamp.__getitem__)) == files_in(whole)


def test_of_many_unusable_images_the_first_eight_are_named(tmp_path: Path):
    keys = [f"2007_{number:06d}" for number in range(20)]
    with pytest.raises(DatasetError, match="11 images") as caught:
        write(tmp_path / "train", keys, load=refusing(*keys[:11]))
    assert str(caught.value).count("damaged JPEG") == 8


def test_images_left_out_are_counted_and_recorded(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write(tmp_path / "train", load=refusing(KEYS[2], KEYS[5]), allow_partial=True, samples_per_shard=1)
    shards = open_shards(tmp_path / "train")
    assert sorted(shards.keys) == sorted(set(KEYS) - {KEYS[2], KEYS[5]})
    assert len(shards.header["shards"]) == 5  # none of a shard without samples
    assert sorted(shards.header["refused"]) == [
        [KEYS[i], f"voc {KEYS[i]}: raw/{KEYS[i]}.jpg: damaged JPEG"] for i in (2, 5)
    ]
    assert "train: 2 images left out (data.allow_partial):" in capfd.readouterr().out


@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_split_without_any_usable_image_is_refused(tmp_path: Path, allow_partial: bool):
    with pytest.raises(DatasetError, match="train: 7 images") as caught:
        write(tmp_path / "train", load=refusing(*KEYS), allow_partial=allow_partial)
    assert "allow_partial" not in str(caught.value)
    assert not (tmp_path / "train").exists()


# --- many processes


class Logged(NamedTuple):
    """A loader that other processes can be sent; it logs each key with the process that loads it."""

    log: Path

    def load(self, key: str) -> Sample:
        with self.log.open("a") as file:
            file.write(f"{key} {os.getpid()}\n")
        return draw(key)


@pytest.mark.slow
def test_ray_workers_write_the_same_bytes_and_share_the_work(tmp_path: Path):
    keys = [f"2007_{number:06d}" for number in range(40)]
    alone = files_in(write(tmp_path / "alone", keys))
    log = tmp_path / "log"
    with ray_workers.tasks(2) as run:
        write(tmp_path / "train", keys, load=Logged(log).load, run=run)
        assert files_in(tmp_path / "train") == alone
        loads = [line.split() for line in log.read_text().splitlines()]
        assert sorted(key for key, _ in loads) == keys
        assert len({process for _, process in loads} - {str(os.getpid())}) == 2
        with pytest.raises(DatasetError, match="train: 1 images"):
            write(tmp_path / "no", keys, load=refusing(keys[0]), run=run)
        (tmp_path / ".gone.sharding").mkdir()
        (tmp_path / ".gone.sharding" / "records").write_text("a file where a folder must be")
        with pytest.raises(UserError, match="File exists"):
            write(tmp_path / "gone", keys, run=run)


# --- another place


def in_bucket(where: str) -> dict[str, bytes]:
    folder = Folder(where)
    return {name: folder.read(name) for name in sorted(folder.list())}


def write_to_bucket(where: str, tmp_path: Path, **options: Any) -> None:
    write(where, work=tmp_path / "work", **options)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "work").exists()


def test_a_bucket_holds_the_same_bytes_as_a_folder(bucket: str, whole: Path, tmp_path: Path):
    where = f"{bucket}/same/train"
    for _ in range(2):  # the second time in the first's place
        write_to_bucket(where, tmp_path)
        assert in_bucket(where) == files_in(whole)
    assert in_bucket(f"{where}.partial") == {}
    remote, local = open_shards(where), open_shards(whole)
    assert remote.keys == local.keys
    assert [remote.read(i) for i in range(7)] == [local.read(i) for i in range(7)]


@pytest.mark.parametrize("call", [1, 5])
def test_a_writer_to_a_bucket_goes_on_where_it_was_stopped(
    bucket: str, whole: Path, tmp_path: Path, call: int
):
    where = f"{bucket}/stopped{call}/train"
    with pytest.raises(KeyboardInterrupt):
        write_to_bucket(where, tmp_path, load=failing_at(call, KeyboardInterrupt()))
    assert in_bucket(where) == {}
    log = tmp_path / "log"
    write_to_bucket(where, tmp_path, load=Logged(log).load)
    assert in_bucket(where) == files_in(whole)
    assert len(log.read_text().splitlines()) == len(KEYS) - (call - 1) // PER_SHARD * PER_SHARD


def test_a_linked_folder_opens_the_shards_of_the_bucket(bucket: str, whole: Path, tmp_path: Path):
    where = f"{bucket}/linked/train"
    write_to_bucket(where, tmp_path)
    for _ in range(2):
        link_shards(where, tmp_path / "train")
        assert {path.name for path in (tmp_path / "train").iterdir()} == {MANIFEST, "location"}
    shards = open_shards(tmp_path / "train", split="train")
    assert shards.folder == where
    assert shards.read(3) == open_shards(whole).read(3)
    write_to_bucket(where, tmp_path, seed=9)  # by another user
    with pytest.raises(ShardError, match=f"{where} .*{tmp_path / 'train'}"):
        open_shards(tmp_path / "train")


def test_a_forked_process_such_as_a_loaders_reads_from_the_bucket_too(
    bucket: str, whole: Path, tmp_path: Path
):
    where = f"{bucket}/forked/train"
    write_to_bucket(where, tmp_path)
    shards = open_shards(where)
    shards.read(0)
    with get_context("fork").Pool(2) as pool:
        samples = pool.map(partial(files_of, shards), range(7))
    assert samples == [files_of(open_shards(whole), i) for i in range(7)]


def files_of(shards: Shards, index: int) -> list[bytes]:
    return [bytes(file) for file in shards.read(index)]


def test_damage_in_a_bucket_is_found(bucket: str, tmp_path: Path):
    where = f"{bucket}/damaged/train"
    write_to_bucket(where, tmp_path)
    data = bytearray(Folder(where).read("shard-000001.tar"))
    data[700] ^= 8
    (tmp_path / "bad").write_bytes(data)
    shards = open_shards(where)
    Folder(where).put(tmp_path / "bad", "shard-000001.tar")
    with pytest.raises(ShardError, match=f"{where}/shard-000001.tar: sha256"):
        open_shards(where, verify_all=True)
    open_shards(where)  # by default samples are compared when they arrive
    with pytest.raises(ShardError, match=f"{where}/shard-000001.tar"):
        shards.read(3)
