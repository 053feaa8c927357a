"""pipeline/shards.py: tars and manifest written, recomputed by others' code, damaged and read."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import shards
from pipeline.datasets import Sample
from pipeline.errors import DatasetError, ShardError
from pipeline.shards import MANIFEST, Shards, open_shards, write_shards

CLASSES = ("background", "cat", "dog")
KEYS = tuple(f"2007_{number:06d}" for number in range(7))
PER_SHARD = 3  # of 7: two full shards and one sample in the third


def draw(key: str) -> Sample:
    """A photo and label of a size and content of the key's own; the label has every class and void."""
    random = np.random.default_rng(int(key[-6:]))
    height, width = (int(side) for side in random.integers(4, 12, 2))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(file, "JPEG", comment=key)
    label = random.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    return Sample(key, file.getvalue(), label)


def write(
    dest: Path, keys: Sequence[str] = KEYS, load: Callable[[str], Sample] = draw, **options: Any
) -> Path:
    settings: dict[str, Any] = {
        "split": "train",
        "classes": CLASSES,
        "samples_per_shard": PER_SHARD,
        "seed": 3,
    }
    write_shards(keys, load, dest, **settings | options)
    return dest


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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
    }


def test_the_seal_is_the_sha256_of_the_manifest_with_noughts_in_its_place(whole: Path):
    manifest = (whole / MANIFEST).read_bytes()
    seal = json.loads(pq.read_metadata(whole / MANIFEST).metadata[b"fcn"])["seal"]
    assert hashlib.sha256(manifest.replace(seal.encode(), b"0" * 64)).hexdigest() == seal


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


def test_an_opened_folder_says_what_is_in_it(whole: Path):
    opened = open_shards(whole)
    assert (len(opened), opened.classes, sorted(opened.keys)) == (7, CLASSES, list(KEYS))


def test_the_digest_depends_on_images_labels_and_class_names_alone(whole: Path, tmp_path: Path):
    digest = open_shards(whole).digest
    assert open_shards(Path(shutil.copytree(whole, tmp_path / "elsewhere"))).digest == digest
    assert open_shards(write(tmp_path / "val", split="val")).digest == digest
    assert open_shards(write(tmp_path / "named", classes=("background", "cat", "cow"))).digest != digest

    def relabelled(key: str) -> Sample:
        sample = draw(key)
        return Sample(key, sample.jpeg, np.zeros_like(sample.label)) if key == KEYS[0] else sample

    assert open_shards(write(tmp_path / "relabelled", load=relabelled)).digest != digest


def test_an_opened_folder_can_be_sent_to_another_process(whole: Path):
    opened = open_shards(whole)
    assert pickle.loads(pickle.dumps(opened)).read(4) == opened.read(4)


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
@pytest.mark.parametrize("error", [DatasetError("label missing"), KeyboardInterrupt()])
def test_a_loader_that_fails_leaves_nothing(tmp_path: Path, call: int, error: BaseException):
    with pytest.raises(type(error)):
        write(tmp_path / "train", load=failing_at(call, error))
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(DatasetError):
        write(folder, load=failing_at(5, DatasetError("label missing")), seed=9)
    assert files_in(folder) == before
    assert len(open_shards(folder)) == len(KEYS)


def test_fewer_samples_leave_no_shard_of_the_older_folder(folder: Path):
    write(folder, KEYS[:2])
    assert sorted(files_in(folder)) == [MANIFEST, "shard-000000.tar"]
    assert len(open_shards(folder)) == 2


def test_what_a_killed_writer_left_does_not_get_into_the_result(whole: Path, tmp_path: Path):
    (tmp_path / ".train.killed" / "new").mkdir(parents=True)
    (tmp_path / ".train.killed" / "new" / "shard-000009.tar").write_bytes(b"half")
    assert files_in(write(tmp_path / "train")) == files_in(whole)


# --- damage: found before anything is used

FILES = (MANIFEST, "shard-000000.tar", "shard-000001.tar", "shard-000002.tar")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_bit_flipped_anywhere_is_found_and_its_file_named(whole: Path, data: st.DataObject):
    path = whole / data.draw(st.sampled_from(FILES))
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(bad)
        with pytest.raises(ShardError, match=f"{path}.*; run `dvc repro -f shard` to write it again"):
            open_shards(whole)
    finally:
        path.write_bytes(good)


def test_every_single_bit_of_the_manifest_counts(whole: Path):
    manifest = bytearray((whole / MANIFEST).read_bytes())
    assert shards._is_sealed(manifest)
    for place in range(len(manifest)):
        for bit in range(8):
            manifest[place] ^= 1 << bit
            assert not shards._is_sealed(manifest), (place, bit)
            manifest[place] ^= 1 << bit


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_found_and_named(whole: Path, data: st.DataObject):
    path = whole / data.draw(st.sampled_from(FILES))
    good = path.read_bytes()
    try:
        path.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
        with pytest.raises(ShardError, match=f"{path}.*; run `dvc repro -f shard` to write it again"):
            open_shards(whole)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_bytes_added_is_found_and_named(folder: Path, name: str):
    with (folder / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ShardError, match=f"{folder / name}"):
        open_shards(folder)


def test_a_missing_shard_is_named(folder: Path):
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(ShardError) as caught:
        open_shards(folder)
    assert str(caught.value) == (
        f"{folder}: shards missing: ['shard-000001.tar'], not in the manifest: none; "
        "run `dvc repro -f shard` to write it again"
    )


@pytest.mark.parametrize("name", ["shard-000003.tar", "shard-000000.tar.part", "notes.txt"])
def test_an_extra_file_is_named(folder: Path, name: str):
    shutil.copyfile(folder / "shard-000000.tar", folder / name)
    with pytest.raises(ShardError, match=rf"shards missing: none, not in the manifest: \['{name}'\]"):
        open_shards(folder)


@pytest.mark.parametrize("other", ["shard-000001.tar", "shard-000002.tar"])
def test_swapped_shards_are_found(folder: Path, other: str):
    first, spare = folder / "shard-000000.tar", folder.parent / "spare"
    first.rename(spare)
    (folder / other).rename(first)
    spare.rename(folder / other)
    with pytest.raises(ShardError, match=f"{first}: "):
        open_shards(folder)


def test_a_shard_of_another_write_is_found(folder: Path, tmp_path: Path):
    other = write(tmp_path / "other", seed=4)
    shutil.copyfile(other / "shard-000000.tar", folder / "shard-000000.tar")
    with pytest.raises(ShardError, match=r"shard-000000.tar: (sha256 \w+|\d+ bytes), expected \w+; run"):
        open_shards(folder)


def test_a_manifest_of_another_write_is_found(folder: Path, tmp_path: Path):
    shutil.copyfile(write(tmp_path / "other", seed=4) / MANIFEST, folder / MANIFEST)
    with pytest.raises(ShardError, match=r"shard-000000.tar: "):
        open_shards(folder)


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """The manifest as somebody else's Parquet writer would save it, header and all."""
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table,
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        lambda table: table.drop_columns(["jpg_offset"]),
        lambda table: table.replace_schema_metadata({}),
    ],
    ids=["as it is", "a row less", "a row twice", "a column less", "no header"],
)
def test_a_manifest_that_was_written_again_by_hand_is_refused(folder: Path, change: Any):
    """So a wrong count of samples, too."""
    rewritten(folder / MANIFEST, change)
    with pytest.raises(ShardError, match=f"{folder / MANIFEST} is damaged"):
        open_shards(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a manifest", b'"seal": "' + b"0" * 64 + b'"'])
def test_what_is_no_manifest_at_all_is_refused(folder: Path, content: bytes):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ShardError, match=f"{folder / MANIFEST} is damaged"):
        open_shards(folder)


def test_another_format_is_refused_with_both_names(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.shards.FORMAT", "fcn-shards/2")
    with pytest.raises(ShardError, match=f"{MANIFEST} has format 'fcn-shards/1', expected 'fcn-shards/2'"):
        open_shards(folder)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_folder_without_a_manifest_says_which_stage_writes_it(tmp_path: Path, is_folder: bool):
    if is_folder:
        (tmp_path / "train").mkdir()
    with pytest.raises(ShardError) as caught:
        open_shards(tmp_path / "train")
    assert str(caught.value) == f"{tmp_path / 'train' / MANIFEST} is missing; run `dvc repro shard` first"


# --- damage after a folder was opened


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("index", range(len(KEYS)))
def test_a_sample_damaged_after_opening_is_named_and_the_others_still_read(
    folder: Path, rows: list[dict[str, Any]], index: int, kind: str
):
    opened, row = open_shards(folder), rows[index]
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row[f"{kind}_offset"] + row[f"{kind}_size"] // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError) as caught:
        opened.read(index)
    assert str(caught.value) == (
        f"{path}: {row['key']}.{kind} is not what the manifest recorded; "
        "run `dvc repro -f shard` to write it again"
    )
    for other in set(range(len(KEYS))) - {index}:
        assert opened.read(other)[0] == draw(opened.keys[other]).jpeg


def test_a_shard_cut_after_opening_is_named(folder: Path):
    opened = open_shards(folder)
    os.truncate(folder / "shard-000002.tar", 700)
    with pytest.raises(ShardError, match=r"shard-000002.tar: .*.jpg is not what the manifest recorded"):
        opened.read(6)


def test_a_shard_removed_after_opening_is_named(folder: Path):
    opened = open_shards(folder)
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002.tar cannot be read: No such file or directory; run"):
        opened.read(6)
