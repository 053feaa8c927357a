"""pipeline/datasets/voc.py: the folder of each year, and real images."""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import voc
from pipeline.errors import DatasetError

NUM_CLASSES = 21


def test_the_root_is_where_each_years_archive_unpacks(tmp_path: Path):
    assert voc.root(tmp_path) == tmp_path / "VOCdevkit" / "VOC2012"
    assert voc.root(tmp_path, 2011) == tmp_path / "VOCdevkit" / "VOC2011"
    below_trainval = tmp_path / "TrainVal" / "VOCdevkit" / "VOC2011"
    below_trainval.mkdir(parents=True)
    assert voc.root(tmp_path, 2011) == below_trainval
    assert voc.root(tmp_path, 2012) == tmp_path / "VOCdevkit" / "VOC2012"
    (tmp_path / "VOCdevkit" / "VOC2011").mkdir(parents=True)
    assert voc.root(tmp_path, 2011) == tmp_path / "VOCdevkit" / "VOC2011"


@pytest.mark.parametrize("split", ["train", "val", "seg11valid"])
def test_the_official_lists_have_the_published_counts(real_data: Path, split: str):
    assert len(voc.LAYOUT.ids(real_data / "voc", split)) == voc.PUBLISHED_COUNTS[f"voc2012/{split}"]


def test_real_pairs_are_read_as_pillow_reads_them(real_data: Path):
    with (real_data / "MANIFEST.tsv").open() as file:
        manifest = {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}
    keys = (real_data / "here" / "voc12_train.txt").read_text().split()[::8][:40]
    assert len(keys) == 40
    for key in keys:
        sample = voc.LAYOUT.sample(real_data / "voc", key, NUM_CLASSES)
        mask = np.asarray(Image.open(real_data / "voc" / "SegmentationClass" / f"{key}.png"))
        assert np.array_equal(sample.label, mask)
        assert Image.open(io.BytesIO(sample.image)).size == mask.shape[::-1]
        assert hashlib.sha256(sample.image).hexdigest() == manifest[key]["image_sha256"]


def test_an_official_id_without_its_image_is_named(real_data: Path):
    present = {path.stem for path in (real_data / "voc" / "JPEGImages").iterdir()}
    absent = next(key for key in voc.LAYOUT.ids(real_data / "voc", "train") if key not in present)
    with pytest.raises(DatasetError, match=rf"^voc {absent}: .*{absent}\.jpg is missing"):
        voc.LAYOUT.sample(real_data / "voc", absent, NUM_CLASSES)
