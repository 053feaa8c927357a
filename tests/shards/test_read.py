"""pipeline/shards/read.py: what an opened folder holds, and damage that comes after it was opened."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ShardError
from pipeline.shards import manifest
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from tests.small_shards import CLASSES, KEYS, draw, write


def test_an_opened_folder_has_its_keys_classes_and_pixel_counts(whole: Path):
    shards = open_shards(whole)
    assert (len(shards), shards.classes, sorted(shards.keys)) == (7, CLASSES, list(KEYS))
    labels = np.concatenate([draw(key).label.ravel() for key in KEYS])
    assert shards.class_pixels.tolist() == np.bincount(labels, minlength=256)[:3].tolist()


def test_the_digest_depends_on_images_labels_and_class_names_alone(whole: Path, tmp_path: Path):
    digest = open_shards(whole).digest
    assert open_shards(Path(shutil.copytree(whole, tmp_path / "elsewhere"))).digest == digest
    assert open_shards(write(tmp_path / "val", split="val")).digest == digest
    assert open_shards(write(tmp_path / "named", classes=("background", "cat", "cow"))).digest != digest

    def relabelled(key: str) -> Sample:
        sample = draw(key)
        return Sample.checked(key, sample.image, np.zeros_like(sample.label)) if key == KEYS[0] else sample

    assert open_shards(write(tmp_path / "relabelled", load=relabelled)).digest != digest


def test_opened_shards_can_be_sent_to_another_process(whole: Path):
    shards = open_shards(whole)
    assert pickle.loads(pickle.dumps(shards)).read(4) == shards.read(4)


def test_a_folder_of_another_split_is_refused_with_both_names(whole: Path):
    assert len(open_shards(whole, split="train")) == len(KEYS)
    with pytest.raises(ShardError, match=f"{whole} .*'train'.*'val'"):
        open_shards(whole, split="val")


def test_another_format_is_refused_with_both_names(whole: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.shards.manifest.SCHEMAS", {"fcn-shards/3": manifest.SCHEMA})
    with pytest.raises(ShardError, match=f"{MANIFEST} .*'fcn-shards/1'.*fcn-shards/3"):
        open_shards(whole)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_folder_without_a_manifest_is_refused_with_the_stage_that_writes_it(
    tmp_path: Path, is_folder: bool
):
    if is_folder:
        (tmp_path / "train").mkdir()
    with pytest.raises(
        ShardError, match=f"{tmp_path / 'train' / MANIFEST} is missing; run `dvc repro shard`"
    ):
        open_shards(tmp_path / "train")


# --- damage after a folder was opened


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_sample_damaged_after_opening_is_named_and_the_others_are_still_read(
    folder: Path, index: int, kind: str
):
    shards, row = open_shards(folder), pq.read_table(folder / MANIFEST).to_pylist()[index]
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row[f"{kind}_offset"] + row[f"{kind}_size"] // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=f"{path}: {row['key']}.{kind} .*; run `dvc repro -f shard`"):
        shards.read(index)
    for other in set(range(len(KEYS))) - {index}:
        assert shards.read(other)[0] == draw(shards.keys[other]).image


def test_a_shard_cut_after_opening_is_named(folder: Path):
    shards = open_shards(folder)
    os.truncate(folder / "shard-000002.tar", 700)
    with pytest.raises(ShardError, match=r"shard-000002.tar: .*\.jpg"):
        shards.read(6)


def test_a_shard_removed_after_opening_is_named(folder: Path):
    shards = open_shards(folder)
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002.tar cannot be read: No such file"):
        shards.read(6)
