"""pipeline/datasets/splits.py: splits combined from published lists."""

import hashlib
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
from torchvision.datasets import SBDataset

from pipeline.datasets import sbd, splits
from pipeline.errors import DatasetError, LeakError
from pipeline.shards.labels import encode_label
from pipeline.shards.sample import digest_of_keys

NUM_CLASSES = 3
# The ids of each list; b and c are in both data sets, as 2,904 ids of SBD are in VOC2012
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


def write_lists(raw: Path, lists: dict[str, Sequence[str]]) -> Path:
    """Write lists alone: photos and labels are not read before they are loaded."""
    for name, ids in lists.items():
        dataset, _, split = name.partition("/")
        layout, root = splits._located(raw, dataset)
        (root / layout.lists).mkdir(parents=True, exist_ok=True)
        (root / layout.lists / f"{split}.txt").write_text("".join(f"{key}\n" for key in ids))
    return raw


def write_data(raw: Path, lists: dict[str, Sequence[str]]) -> Path:
    """Write lists, photos and labels; SBD's labels are all 1 and its photos darker, VOC's are all 2."""
    for name, ids in lists.items():
        layout, root = splits._located(raw, name.partition("/")[0])
        is_sbd = layout is sbd.LAYOUT
        for key in ids:
            photo, label = layout.files(root, key)
            for path in (photo, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(jpeg(50 if is_sbd else 150))
            values = np.full((3, 4), 1 if is_sbd else 2, np.uint8)
            if is_sbd:
                savemat(label, {"GTcls": {"Segmentation": values}})
            else:
                label.write_bytes(encode_label(values))
    return write_lists(raw, lists)


@pytest.fixture(scope="module")
def shared_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read."""
    return write_data(tmp_path_factory.mktemp("splits") / "raw", LISTS)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """For tests that take something away."""
    return write_data(tmp_path / "raw", LISTS)


def resolve(raw: Path, include: Sequence[str], exclude: Sequence[str] = (), **options: Any) -> splits.Split:
    settings: dict[str, Any] = {"num_classes": NUM_CLASSES, "count": None}
    settings |= {"checks_published": False, "allow_partial": False}
    return splits.resolve(raw, include, exclude, **settings | options)


# --- which ids, and where from


def test_an_id_in_several_lists_takes_image_and_label_from_the_first(shared_raw: Path):
    first = resolve(shared_raw, ["voc2012/train", "sbd/train"])
    assert first.sources == {"c": "voc2012", "a": "voc2012", "d": "sbd", "b": "sbd"}
    assert first.load("c").image == jpeg(150)
    assert first.load("c").label.tolist() == [[2] * 4] * 3
    second = resolve(shared_raw, ["sbd/train", "voc2012/train"])
    assert second.load("c").image == jpeg(50)
    assert second.load("c").label.tolist() == [[1] * 4] * 3


def test_each_year_of_voc_has_a_folder_of_its_own(shared_raw: Path):
    split = resolve(shared_raw, ["voc2011/seg11valid"])
    assert split.sources == {"d": "voc2011"}
    assert split.load("d").label.tolist() == [[2] * 4] * 3


subsets = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.tuples(subsets, subsets, subsets, subsets))
def test_a_split_is_the_union_of_its_lists_without_the_excluded(lists, tmp_path: Path):
    names = ["sbd/train", "voc2012/train", "sbd/val", "voc2012/val"]
    write_lists(tmp_path, dict(zip(names, lists, strict=True)))
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
    with pytest.raises(DatasetError, match=rf"^sbd/train: .*8498.* 3 .*{sbd.root(shared_raw)}"):
        resolve(shared_raw, ["sbd/train"], checks_published=True)


def test_an_excluded_list_is_held_against_its_published_length_too(tmp_path: Path):
    write_lists(tmp_path, {"sbd/val": [f"x{number:04d}" for number in range(2857)], "sbd/train": ["x0000"]})
    assert len(resolve(tmp_path, ["sbd/val"], checks_published=True).sources) == 2857
    with pytest.raises(DatasetError, match=r"^sbd/train: .*8498.* 1 "):
        resolve(tmp_path, ["sbd/val"], ["sbd/train"], checks_published=True)


def test_a_users_own_list_has_no_published_length(tmp_path: Path):
    raw = write_lists(tmp_path, {"voc2012/mine": ["a"]})
    assert list(resolve(raw, ["voc2012/mine"], checks_published=True).sources) == ["a"]


# --- lists that follow from published ones


@pytest.mark.parametrize(
    ("include", "exclude", "lists", "sources"),
    [
        (
            "voc2012/trainaug",
            [],
            {
                "voc2012/train": "ca",
                "voc2012/val": "vw",
                "sbd/train": "abv",
                "sbd/val": "dw",
            },
            {"c": "voc2012", "a": "voc2012", "b": "sbd", "d": "sbd"},
        ),
        (
            "voc2011/seg11valid",
            [],
            {"voc2011/val": "cab", "sbd/train": "ax"},
            {"c": "voc2011", "b": "voc2011"},
        ),
        (
            "sbd/train_noval",
            [],
            {"sbd/train": "ab", "sbd/val": "cd", "voc2012-main/val": "bdy"},
            {"a": "sbd", "c": "sbd"},
        ),
        (
            "voc2011/trainval",
            ["voc2011/seg11valid"],
            {"voc2011/val": "ca", "voc2011/trainval": "cat", "sbd/train": "a"},
            {"a": "voc2011", "t": "voc2011"},
        ),
    ],
)
def test_a_derived_list_follows_from_the_published_ones(
    tmp_path: Path, include: str, exclude: list[str], lists: dict[str, str], sources: dict[str, str]
):
    assert resolve(write_lists(tmp_path, lists), [include], exclude).sources == sources


def test_a_list_file_of_a_derived_name_takes_precedence(tmp_path: Path):
    raw = write_lists(tmp_path, {"voc2011/seg11valid": ["z"], "voc2011/val": ["c"], "sbd/train": ["a"]})
    assert list(resolve(raw, ["voc2011/seg11valid"]).sources) == ["z"]


def test_a_derived_list_needs_those_it_follows_from(tmp_path: Path):
    raw = write_lists(tmp_path, {"voc2011/val": ["c"]})
    with pytest.raises(DatasetError, match=r"^sbd: no data folder"):
        resolve(raw, ["voc2011/seg11valid"])


@pytest.mark.parametrize("name", splits.DERIVED)
def test_a_derived_list_of_the_right_length_but_with_other_ids_is_refused(tmp_path: Path, name: str):
    count = splits.PUBLISHED_COUNTS[name]
    raw = write_lists(tmp_path, {name: [f"x{number}" for number in range(count)]})
    with pytest.raises(DatasetError, match=rf"^{name}: {count} images .*not the same"):
        resolve(raw, [name], checks_published=True)


def test_a_test_list_without_published_labels_is_refused_by_that_reason(tmp_path: Path):
    raw = write_lists(tmp_path, {"voc2012/test": ["a"]})
    with pytest.raises(DatasetError, match=r"^voc2012/test: .*no labels"):
        resolve(raw, ["voc2012/test"])


REAL = {  # list in a profile: where the published one lies among the real data
    "voc2012/train": "voc/ImageSets/Segmentation/train.txt",
    "voc2012/val": "voc/ImageSets/Segmentation/val.txt",
    "voc2012/trainaug": "sbd/lists/train_aug.txt",
    "voc2011/seg11valid": "voc/ImageSets/Segmentation/seg11valid.txt",
    "sbd/train_noval": "sbd/lists/sds_train.txt",
}


@pytest.fixture
def published(real_data: Path, tmp_path: Path) -> Path:
    """All of SBD as if it were its train list, and VOC2012's own lists: SBD's two lists are not at hand."""
    ids = {name: (real_data / path).read_text().split() for name, path in REAL.items()}
    everything = ids["sbd/train_noval"] + (real_data / "sbd/lists/sds_val.txt").read_text().split()
    assert len(everything) == splits.PUBLISHED_COUNTS["sbd/train"] + splits.PUBLISHED_COUNTS["sbd/val"]
    lists = {
        "voc2012/train": ids["voc2012/train"],
        "voc2012/val": ids["voc2012/val"],
        "voc2012-main/val": everything[5623:],
        "sbd/train": everything[:8498],
        "sbd/val": everything[8498:],
    }
    return write_lists(tmp_path, lists)


@pytest.mark.parametrize("name", ["voc2012/train", "voc2012/val", "voc2012/trainaug", "sbd/train_noval"])
def test_a_list_made_from_the_published_ones_is_the_published_one(
    published: Path, real_data: Path, name: str
):
    sources = resolve(published, [name], checks_published=True).sources
    assert len(sources) == splits.PUBLISHED_COUNTS[name]
    assert set(sources) == set((real_data / REAL[name]).read_text().split())


def test_the_digests_of_the_derived_lists_are_of_the_published_files(real_data: Path):
    for name in splits.DERIVED:
        ids = dict.fromkeys((real_data / REAL[name]).read_text().split(), "")
        assert digest_of_keys(ids) == splits.DERIVED[name].sha256
    # as the reference release's file and torchvision's datasets/sbd.py are
    seg11valid, train_noval = REAL["voc2011/seg11valid"], REAL["sbd/train_noval"]
    assert splits.DERIVED["voc2011/seg11valid"].sha256 == (
        "4ca991bd72c251fd2485eaa9e29536502ea3800d1b1c17c151fd6a04bcfbc2cc"
    )
    assert hashlib.sha256((real_data / seg11valid).read_bytes()).hexdigest().startswith("4ca991bd")
    assert hashlib.md5((real_data / train_noval).read_bytes()).hexdigest() == SBDataset.voc_split_md5


def test_the_papers_validation_set_comes_out_of_a_list_that_holds_it(real_data: Path, tmp_path: Path):
    """VOC2011's val is not at hand: seg11valid and some ids of SBD's train stand in for it."""
    valid = (real_data / REAL["voc2011/seg11valid"]).read_text().split()
    aug = (real_data / REAL["voc2012/trainaug"]).read_text().split()
    sbd_train = [key for key in aug if key not in set(valid)][:8498]
    lists = {"voc2011/val": valid + sbd_train[: 1111 - 736], "sbd/train": sbd_train}
    assert (
        list(resolve(write_lists(tmp_path, lists), ["voc2011/seg11valid"], checks_published=True).sources)
        == valid
    )


def test_the_published_lengths_are_those_of_the_development_kits():
    counts = splits.PUBLISHED_COUNTS
    for year in (2007, 2011, 2012):
        assert counts[f"voc{year}/train"] + counts[f"voc{year}/val"] == counts[f"voc{year}/trainval"]
    assert counts["sbd/train"] + counts["sbd/val"] == 11355
    for name in (*counts, *splits.DERIVED):
        assert name.partition("/")[0] in splits.DATASETS


def test_the_right_number_of_ids_passes(shared_raw: Path):
    assert len(resolve(shared_raw, ["sbd/train"], ["voc2012/val"], count=2).sources) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_ids_than_expected_is_refused(shared_raw: Path, count: int):
    expected = rf"^sbd/train - voc2012/val - sbd/val: .* {count} .* 2 .*{shared_raw}.*data\.splits"
    with pytest.raises(DatasetError, match=expected):
        resolve(shared_raw, ["sbd/train"], ["voc2012/val", "sbd/val"], count=count)


def test_a_split_that_excludes_everything_is_refused(shared_raw: Path):
    with pytest.raises(DatasetError, match=rf"^voc2012/val - sbd/train: .*{shared_raw}; run `dvc"):
        resolve(shared_raw, ["voc2012/val"], ["sbd/train"])


# --- missing files and lists


def test_without_allow_partial_a_missing_file_is_found_when_its_sample_is_loaded(raw: Path):
    (sbd.root(raw) / "img" / "c.jpg").unlink()
    split = resolve(raw, ["sbd/train"])
    with pytest.raises(DatasetError, match=r"sbd c: .*img/c\.jpg is missing"):
        split.load("c")


@pytest.mark.parametrize("folder", ["img", "cls"])
def test_with_allow_partial_ids_without_both_files_are_left_out_and_counted(
    raw: Path, folder: str, capsys: pytest.CaptureFixture[str]
):
    next((sbd.root(raw) / folder).glob("c.*")).unlink()
    split = resolve(raw, ["sbd/train", "voc2012/val"], ["sbd/val"], allow_partial=True)
    assert list(split.sources) == ["d", "b"]
    assert "sbd/train + voc2012/val - sbd/val: 2 of 3 " in capsys.readouterr().out
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


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize("name", ["voc2007/train", "voc2012/train", "sbd/train"])
def test_a_missing_data_set_is_named(tmp_path: Path, name: str, allow_partial: bool):
    with pytest.raises(DatasetError, match=rf"^{name[:3]}: no data folder {tmp_path}"):
        resolve(tmp_path, [name], allow_partial=allow_partial)


@pytest.mark.parametrize(("include", "exclude"), [(["sbd/tarin"], []), (["sbd/train"], ["sbd/tarin"])])
def test_a_missing_list_is_refused_with_those_that_are_there(
    shared_raw: Path, include: list[str], exclude: list[str]
):
    with pytest.raises(DatasetError, match=r"^sbd: .*'tarin'.*: train, val$"):
        resolve(shared_raw, include, exclude)


def test_listed_returns_whole_lists_whether_the_files_exist_or_not(raw: Path):
    for path in sbd.LAYOUT.files(sbd.root(raw), "d"):
        path.unlink()
    assert splits.listed(raw, ["sbd/train", "voc2012/val"]) == {
        "sbd/train": ["d", "c", "b"],
        "voc2012/val": ["b"],
    }


def test_a_label_with_more_classes_than_the_profile_names_is_refused(shared_raw: Path):
    split = resolve(shared_raw, ["voc2012/val"], num_classes=2)
    with pytest.raises(DatasetError, match=r"label values 2; expected 0\.\.1 or 255"):
        split.load("b")


# --- images that are left out of train to choose settings on


def of_keys(keys: Sequence[str]) -> splits.Split:
    return splits.Split(Path(), dict.fromkeys(keys, "own"), NUM_CLASSES)


def test_the_held_out_share_follows_from_the_ids_and_an_added_image_moves_at_most_one_other():
    keys = [f"photo{number}" for number in range(100)]
    held_out = splits.hold_out(of_keys(keys), 0.2, []).sources
    by_hash = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    assert held_out.keys() == {*by_hash[:20]}
    assert splits.hold_out(of_keys(keys[::-1]), 0.2, []).sources.keys() == held_out.keys()
    for more in ([*keys, "new"], [*keys, "other"]):
        assert (
            len(splits.hold_out(of_keys(more), 0.2, []).sources.keys() - held_out.keys() - {*more[100:]}) <= 1
        )
    assert len(splits.hold_out(of_keys(keys), 0.001, []).sources) == 1


def test_an_image_of_val_is_never_held_out():
    keys = [f"photo{number}" for number in range(10)]
    assert splits.hold_out(of_keys(keys), 0.2, keys[2:]).sources.keys() == {*keys[:2]}
    with pytest.raises(DatasetError, match=r"data\.tuning 0\.3 of 10 images"):
        splits.hold_out(of_keys(keys), 0.3, keys[2:])
    with pytest.raises(DatasetError, match="at least one"):
        splits.hold_out(of_keys(["a"]), 0.5, [])


def test_a_list_to_choose_settings_on_must_be_of_other_images_than_val_and_leave_some_to_train_on():
    train, val = of_keys(["a", "b"]), of_keys(["c"])
    splits.refuse_shared(of_keys(["b"]), val, train)
    with pytest.raises(LeakError, match="1 images of val: c"):
        splits.refuse_shared(of_keys(["b", "c"]), val, train)
    with pytest.raises(DatasetError, match="every image of train"):
        splits.refuse_shared(of_keys(["a", "b"]), val, train)
