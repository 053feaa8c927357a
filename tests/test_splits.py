"""pipeline/datasets/splits.py: splits put together from published lists."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from pipeline.datasets import sbd, splits, voc
from pipeline.errors import DatasetError

NUM_CLASSES = 3
# In which list each id is. b and c are in both data sets, as 2,904 ids of SBD are in VOC2012
LISTS = {
    "voc2012/train": ["c", "a"],
    "voc2012/val": ["b"],
    "voc2011/seg11valid": ["d"],
    "sbd/train": ["d", "c", "b"],
    "sbd/val": ["e"],
}


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, shade, shade)).save(file, "JPEG")
    return file.getvalue()


def write_data(raw: Path, lists: dict[str, Sequence[str]]) -> Path:
    """Lists, images and labels in true layout; SBD's labels are all 1 and its images darker, VOC's are all 2."""
    for name, ids in lists.items():
        dataset, _, split = name.partition("/")
        module, root = splits.DATASETS[dataset]
        folder = root(raw)
        table = folder / "ImageSets" / "Segmentation" if module is voc else folder
        table.mkdir(parents=True, exist_ok=True)
        (table / f"{split}.txt").write_text("".join(f"{key}\n" for key in ids))
        for key in ids:
            image, label = module.files(folder, key)
            for path in (image, label):
                path.parent.mkdir(exist_ok=True)
            image.write_bytes(jpeg(50 if module is sbd else 150))
            values = np.full((3, 4), 1 if module is sbd else 2, np.uint8)
            if module is sbd:
                savemat(label, {"GTcls": {"Segmentation": values}})
            else:
                mask = Image.fromarray(values)
                mask.putpalette(bytes(768))
                mask.save(label)
    return raw


@pytest.fixture(scope="module")
def shared_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read."""
    return write_data(tmp_path_factory.mktemp("splits") / "raw", LISTS)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """For tests that take something away."""
    return write_data(tmp_path / "raw", LISTS)


def resolve(raw: Path, include: Sequence[str], exclude: Sequence[str] = (), **options: Any) -> splits.Split:
    settings: dict[str, Any] = {"count": None, "checks_published": False, "allow_partial": False} | options
    return splits.resolve(raw, include, exclude, num_classes=NUM_CLASSES, **settings)


# --- which ids, and where from


def test_ids_come_in_the_order_of_the_lists(shared_raw: Path):
    split = resolve(shared_raw, ["sbd/train", "voc2012/train", "sbd/val"])
    assert list(split.sources) == ["d", "c", "b", "a", "e"]


def test_an_id_in_several_lists_takes_image_and_label_from_the_first(shared_raw: Path):
    first = resolve(shared_raw, ["voc2012/train", "sbd/train"])
    assert first.sources == {"c": "voc2012", "a": "voc2012", "d": "sbd", "b": "sbd"}
    assert first.load("c").jpeg == jpeg(150)
    assert first.load("c").label.tolist() == [[2] * 4] * 3
    second = resolve(shared_raw, ["sbd/train", "voc2012/train"])
    assert second.load("c").jpeg == jpeg(50)
    assert second.load("c").label.tolist() == [[1] * 4] * 3


def test_an_excluded_id_is_out_whichever_data_set_it_came_from(shared_raw: Path):
    split = resolve(shared_raw, ["voc2012/train", "sbd/train"], ["voc2012/val"])
    assert list(split.sources) == ["c", "a", "d"]  # b is excluded as VOC's, and was SBD's


def test_to_exclude_ids_that_are_not_there_is_no_mistake(shared_raw: Path):
    assert list(resolve(shared_raw, ["voc2012/train"], ["sbd/val"]).sources) == ["c", "a"]


def test_each_year_of_voc_has_a_folder_of_its_own(shared_raw: Path):
    split = resolve(shared_raw, ["voc2011/seg11valid"])
    assert split.sources == {"d": "voc2011"}
    assert split.load("d").label.tolist() == [[2] * 4] * 3


subsets = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.tuples(subsets, subsets, subsets, subsets))
def test_a_split_is_the_union_of_its_lists_without_the_excluded(lists, tmp_path: Path):
    names = ["sbd/train", "voc2012/train", "sbd/val", "voc2012/val"]
    for name, ids in zip(names, lists, strict=True):  # files are not looked at before they are loaded
        dataset, _, split = name.partition("/")
        module, root = splits.DATASETS[dataset]
        folder = root(tmp_path) / ("ImageSets/Segmentation" if module is voc else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.txt").write_text("\n".join(ids))
    expected = [key for key in dict.fromkeys([*lists[0], *lists[1]]) if key not in {*lists[2], *lists[3]}]
    if not expected:
        with pytest.raises(DatasetError, match="no image left"):
            resolve(tmp_path, names[:2], names[2:])
        return
    split = resolve(tmp_path, names[:2], names[2:])
    assert list(split.sources) == expected
    assert {key for key, source in split.sources.items() if source == "sbd"} == {*expected} & {*lists[0]}


# --- how many there must be


def test_a_list_that_is_not_as_long_as_published_is_refused(shared_raw: Path):
    with pytest.raises(DatasetError) as caught:
        resolve(shared_raw, ["sbd/train"], checks_published=True)
    assert str(caught.value) == (
        f"sbd/train: expected 8498 images as published, found 3 listed in {sbd.root(shared_raw)}; "
        "run `dvc repro -f download` or set data.allow_partial"
    )


def test_an_excluded_list_is_held_against_its_published_length_too(tmp_path: Path):
    ids = [f"x{number:04d}" for number in range(2857)]
    folder = sbd.root(tmp_path)
    folder.mkdir(parents=True)
    (folder / "val.txt").write_text("\n".join(ids))
    (folder / "train.txt").write_text("x0000\n")
    assert len(resolve(tmp_path, ["sbd/val"], checks_published=True).sources) == 2857
    with pytest.raises(DatasetError, match="sbd/train: expected 8498 images as published, found 1"):
        resolve(tmp_path, ["sbd/val"], ["sbd/train"], checks_published=True)


def test_a_list_of_ones_own_has_no_published_length(raw: Path):
    module, root = splits.DATASETS["voc2012"]
    folder = root(raw) / "ImageSets" / "Segmentation"
    (folder / "mine.txt").write_text("a\n")
    assert list(resolve(raw, ["voc2012/mine"], checks_published=True).sources) == ["a"]
    assert "voc2012/mine" not in module.PUBLISHED_COUNTS


def test_the_published_lengths_are_those_of_the_development_kits():
    assert voc.PUBLISHED_COUNTS["voc2012/train"] + voc.PUBLISHED_COUNTS["voc2012/val"] == 2913
    assert sbd.PUBLISHED_COUNTS["sbd/train"] + sbd.PUBLISHED_COUNTS["sbd/val"] == 11355
    for name in (*voc.PUBLISHED_COUNTS, *sbd.PUBLISHED_COUNTS):
        assert name.partition("/")[0] in splits.DATASETS


def test_the_right_number_of_ids_passes(shared_raw: Path):
    assert len(resolve(shared_raw, ["sbd/train"], ["voc2012/val"], count=2).sources) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_ids_than_asked_for_is_refused(shared_raw: Path, count: int):
    with pytest.raises(DatasetError) as caught:
        resolve(shared_raw, ["sbd/train"], ["voc2012/val", "sbd/val"], count=count)
    assert str(caught.value) == (
        f"sbd/train - voc2012/val - sbd/val: expected {count} images, found 2 in {shared_raw}; "
        "run `dvc repro -f download`, mend data.splits in the profile, or set data.allow_partial"
    )


def test_a_split_that_excludes_everything_is_refused(shared_raw: Path):
    with pytest.raises(DatasetError) as caught:
        resolve(shared_raw, ["voc2012/val"], ["sbd/train"])
    assert str(caught.value).startswith(f"voc2012/val - sbd/train: no image left in {shared_raw}; run `dvc")


# --- what is not there


def test_without_allow_partial_a_missing_file_is_found_when_its_sample_is_loaded(raw: Path):
    (sbd.root(raw) / "img" / "c.jpg").unlink()
    split = resolve(raw, ["sbd/train"])
    with pytest.raises(DatasetError, match=r"sbd c: .*img/c.jpg is missing; run `dvc repro -f download`"):
        split.load("c")


@pytest.mark.parametrize("folder", ["img", "cls"])
def test_with_allow_partial_ids_without_both_files_are_left_out_and_counted(
    raw: Path, folder: str, capsys: pytest.CaptureFixture[str]
):
    next((sbd.root(raw) / folder).glob("c.*")).unlink()
    split = resolve(raw, ["sbd/train", "voc2012/val"], ["sbd/val"], allow_partial=True)
    assert list(split.sources) == ["d", "b"]
    assert capsys.readouterr().out == (
        "sbd/train + voc2012/val - sbd/val: 2 of 3 listed images are there (data.allow_partial)\n"
    )
    assert [split.load(key).key for key in split.sources] == ["d", "b"]


def test_an_id_missing_in_the_first_list_is_not_taken_from_the_second(raw: Path):
    """Or the label of an image would depend on which files happen to be there."""
    (sbd.root(raw) / "img" / "c.jpg").unlink()
    assert "c" not in resolve(raw, ["sbd/train", "voc2012/train"], allow_partial=True).sources


def test_with_allow_partial_the_number_may_be_any_but_none(raw: Path):
    (sbd.root(raw) / "img" / "c.jpg").unlink()
    assert len(resolve(raw, ["sbd/train"], count=3, allow_partial=True).sources) == 2
    for image in (sbd.root(raw) / "img").glob("*.jpg"):
        image.unlink()
    with pytest.raises(DatasetError, match="sbd/train: no image left"):
        resolve(raw, ["sbd/train"], count=3, allow_partial=True)


def test_without_allow_partial_nothing_is_printed(shared_raw: Path, capsys: pytest.CaptureFixture[str]):
    resolve(shared_raw, ["sbd/train"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize("name", ["voc2007/train", "voc2012/train", "sbd/train"])
def test_a_data_set_that_is_not_there_at_all_is_named(tmp_path: Path, name: str, allow_partial: bool):
    dataset = name[:3]
    with pytest.raises(
        DatasetError, match=rf"^{dataset}: no data folder {tmp_path}.*; run `dvc repro -f download`"
    ):
        resolve(tmp_path, [name], allow_partial=allow_partial)


def test_a_list_that_is_not_there_is_answered_with_those_that_are(shared_raw: Path):
    with pytest.raises(DatasetError, match=r"sbd: no list 'tarin' in .*; lists there: train, val$"):
        resolve(shared_raw, ["sbd/tarin"])
    with pytest.raises(DatasetError, match="sbd: no list 'tarin'"):
        resolve(shared_raw, ["sbd/train"], ["sbd/tarin"])


def test_the_lists_a_split_is_made_of_are_given_whole_whether_the_files_are_there_or_not(raw: Path):
    for path in splits.sbd.files(splits.sbd.root(raw), "d"):
        path.unlink()
    assert splits.listed(raw, ["sbd/train", "voc2012/val"]) == {
        "sbd/train": ["d", "c", "b"],
        "voc2012/val": ["b"],
    }


def test_a_label_with_more_classes_than_the_profile_names_is_refused(shared_raw: Path):
    split = splits.resolve(
        shared_raw,
        ["voc2012/val"],
        [],
        num_classes=2,
        count=None,
        checks_published=False,
        allow_partial=False,
    )
    with pytest.raises(DatasetError, match=r"label values 2; expected 0..1 or 255"):
        split.load("b")
