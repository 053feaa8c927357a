"""pipeline/shards/read.py: opened, read, and every damage found before anything is used."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from tests.small_shards import CLASSES, KEYS, draw, write


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


# --- what an opened folder says


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
        return Sample.checked(key, sample.jpeg, np.zeros_like(sample.label)) if key == KEYS[0] else sample

    assert open_shards(write(tmp_path / "relabelled", load=relabelled)).digest != digest


def test_an_opened_folder_can_be_sent_to_another_process(whole: Path):
    opened = open_shards(whole)
    assert pickle.loads(pickle.dumps(opened)).read(4) == opened.read(4)


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
        f"{folder}: shards missing: shard-000001.tar; run `dvc repro -f shard` to write it again"
    )


@pytest.mark.parametrize("name", ["shard-000003.tar", "shard-000000.tar.part", "notes.txt"])
def test_an_extra_file_is_named(folder: Path, name: str):
    shutil.copyfile(folder / "shard-000000.tar", folder / name)
    with pytest.raises(ShardError, match=f"{folder}: not in the manifest: {name}; run"):
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
    monkeypatch.setattr("pipeline.shards.manifest.FORMAT", "fcn-shards/2")
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
