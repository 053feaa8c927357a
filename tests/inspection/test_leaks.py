"""The leak guard: the images that two splits share, by id and by pixels, and the refusal of scores on them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LeakError
from pipeline.inspection import leaks
from pipeline.inspection.leaks import Images, check_model, refuse, shared_images, survey
from pipeline.shards.sample import Sample
from pipeline.training import provenance
from tests.drawn_shards import photo, shards_of

A, B, C, D = (bytes([number]) * 32 for number in range(4))  # the pixel digests of four images
REASONS = ["A leak on purpose, to measure it."]


def pair(shared: dict, a: str, b: str) -> dict:
    (match,) = [pair for pair in shared["pairs"] if pair["splits"] == [a, b]]
    return match


# --- seen


def test_an_image_is_seen_under_its_own_id_or_another_one_with_its_pixels():
    train = Images("train", {"1": A, "2": B, "4": C})
    val = Images("val", {"1": D, "3": B, "5": bytes(31) + b"x"})
    assert shared_images(val, train) == {"1": "1", "3": "2"}


def test_images_of_unknown_pixels_do_not_count_as_equal():
    assert shared_images(Images("val", {"1": None}), Images("train", {"2": None})) == {}


images = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([A, B, C, D, None]))


@given(images, images)
def test_seen_is_what_comparing_each_with_each_finds(evaluated, trained):
    expected = {
        key
        for key, other in itertools.product(evaluated, trained)
        if key == other or (evaluated[key] is not None and evaluated[key] == trained[other])
    }
    shared = shared_images(Images("val", evaluated), Images("train", trained))
    assert shared.keys() == expected
    for key, other in shared.items():
        assert key == other or (key not in trained and evaluated[key] == trained[other])


# --- survey


def test_every_pair_of_splits_and_lists_is_compared_by_id_and_by_pixels():
    train = Images("train", {"1": A, "2": B, "3": C})
    val = Images("val", {"5": D})
    lists = {"sbd/train": ["1", "2", "3", "5"], "voc2012/val": ["5", "6"]}
    shared = survey(train, val, lists, trained_on=["sbd/train"], evaluated_on=["voc2012/val"])
    assert [tuple(one["splits"]) for one in shared["pairs"]] == [
        *itertools.combinations(["train", "val", "sbd/train", "voc2012/val"], 2)
    ]
    assert shared["leak"] == {"num_images": 0, "id_in_train": {}}
    assert shared["splits"]["voc2012/val"] == {"num_images": 2, "num_pixels_known": 1}
    assert pair(shared, "train", "val")["verdict"] == "nothing in common"
    assert pair(shared, "train", "sbd/train")["verdict"] == "both are for train"
    assert pair(shared, "val", "voc2012/val")["verdict"] == "both are for val"
    meets = pair(shared, "sbd/train", "voc2012/val")
    assert (meets["num_same_id"], meets["num_same_pixels"]) == (1, 1)
    assert (meets["num_in_train"], meets["num_in_val"]) == (0, 1)
    assert (meets["verdict"], meets["same_id"]) == ("left out of train", ["5"])


def test_images_that_val_leaves_out_are_reported_too():
    """As seg11valid is made: VOC's val without what SBD trains on."""
    shared = survey(
        Images("train", {"1": A}),
        Images("val", {"2": B}),
        {"sbd/train": ["1"], "voc2011/val": ["1", "2"]},
        ["sbd/train"],
        ["voc2011/val"],
    )
    assert pair(shared, "sbd/train", "voc2011/val")["verdict"] == "left out of val"


def test_the_same_pixels_under_two_ids_are_a_leak_between_splits_and_duplicates_within_one():
    train = Images("train", {"1": A, "2": B, "3": B})
    shared = survey(train, Images("val", {"9": A, "8": C}), {}, [], [])
    assert shared["leak"] == {"num_images": 1, "id_in_train": {"9": "1"}}
    meets = pair(shared, "train", "val")
    assert (meets["num_same_id"], meets["num_same_pixels"]) == (0, 1)
    assert meets["same_pixels_other_id"] == {"1": "9"}
    assert meets["verdict"] == "LEAK: 1 are trained and evaluated on"
    assert shared["duplicates"] == {"train": [["2", "3"]], "val": []}
    refused, *_, in_train, in_val = leaks.as_blocks(shared, [])
    assert str(refused).startswith("LEAK: 1 of the 2 images of val are trained on: 9 (1 in train).")
    assert "within train: 2 = 3." in str(in_train)
    assert "within val: none." in str(in_val)
    assert any(REASONS[0] in str(block) for block in leaks.as_blocks(shared, REASONS))


def test_the_1103_ids_that_sds_val_shares_with_vocs_val_are_all_found(real_data: Path):
    """A published split that leaks: another project's val of SBD, of which people train on the rest."""
    sds = (real_data / "sbd" / "lists" / "sds_val.txt").read_text().split()
    voc = (real_data / "voc" / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    train, val = Images("train", dict.fromkeys(sds)), Images("val", dict.fromkeys(voc))
    shared = survey(train, val, {"sbd/val": sds, "voc2012/val": voc}, ["sbd/val"], ["voc2012/val"])
    assert (len(sds), len(voc)) == (5732, 1449)
    assert shared["leak"]["num_images"] == 1103
    assert shared["leak"]["id_in_train"] == {key: key for key in sorted(voc) if key in set(sds)}
    meets = pair(shared, "sbd/val", "voc2012/val")
    assert (meets["num_same_id"], meets["verdict"]) == (1103, "LEAK: 1103 are trained and evaluated on")
    with pytest.raises(
        LeakError, match=r"^1103 images of val are in train: (\d{4}_\d{6}, ){7}\d{4}_\d{6} and 1095 more"
    ):
        refuse(shared["leak"]["id_in_train"], "val", "train", [], "leave them out")


def test_trainaug_as_the_profiles_make_it_shares_no_id_with_vocs_val(real_data: Path):
    trainaug = (real_data / "sbd" / "lists" / "train_aug.txt").read_text().split()
    voc = (real_data / "voc" / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert not shared_images(Images("val", dict.fromkeys(voc)), Images("train", dict.fromkeys(trainaug)))


def test_a_real_photo_is_known_again_under_another_name_and_header(real_data: Path, tmp_path: Path):
    path = real_data / "voc" / "JPEGImages" / "2007_000032.jpg"
    jpeg = path.read_bytes()
    comment = b"\xff\xfe\x00\x07other"  # the same pixels in a file of other bytes
    label = np.zeros((281, 500), np.uint8)
    train = shards_of(
        tmp_path / "train", {"1": 1}, samples={"2007_000032": Sample.checked("2007_000032", jpeg, label)}
    )
    renamed = Sample.checked("mine", jpeg[:2] + comment + jpeg[2:], label)
    val = shards_of(tmp_path / "val", {"2": 2}, samples={"mine": renamed})
    shared = shared_images(Images.of_shards("val", val), Images.of_shards("train", train))
    assert shared == {"mine": "2007_000032"}


# --- what a leak does


def test_a_leak_is_refused_with_the_first_ids_and_the_remedy():
    leak = {f"{number:02}": f"{number:02}" for number in range(11)} | {"00": "x"}
    with pytest.raises(LeakError) as error:
        refuse(leak, "val", "train", [], "exclude them")
    message = str(error.value)
    assert message.startswith(
        "11 images of val are in train: 00 (x in train), 01, 02, 03, 04, 05, 06, 07 and 3 more;"
    )
    assert "exclude them" in message
    assert "data.allow_leak" in message


def test_an_allowed_leak_is_a_warning_with_the_reason_and_no_leak_is_silent(capsys):
    refuse({}, "val", "train", [], "")
    refuse({}, "val", "train", REASONS, "")
    assert capsys.readouterr().err == ""
    refuse({"1": "1"}, "val", "train", REASONS, "exclude them")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: LEAK: 1 images of val are in train: 1;")
    assert REASONS[0] in warning


@pytest.mark.parametrize(
    ("leak", "reasons", "expected"),
    [({}, [], "none"), ({}, REASONS, "none"), ({"1": "1"}, REASONS, "allowed"), ({"1": "1"}, [], "refused")],
)
def test_the_verdict_is_of_the_leak_not_of_the_reasons(leak, reasons, expected):
    assert leaks.verdict(leak, reasons) == expected


# --- models


@pytest.fixture
def train(tmp_path: Path):
    return shards_of(tmp_path / "train", {"1": 1, "2": 2, "3": 3})


def test_a_model_is_refused_on_an_image_it_was_trained_on_under_any_name(train, tmp_path: Path):
    records = provenance.records(train, [])
    val = Images.of_shards("val", shards_of(tmp_path / "val", {"1": 9, "7": 2, "8": 8}))
    with pytest.raises(LeakError, match=r"2 images of val .* fcn8s\.pt .*: 1, 7 \(2 in "):
        check_model(records, val, "fcn8s.pt", [])
    assert check_model(records, val, "fcn8s.pt", REASONS) == 2


def test_a_model_is_scored_on_images_that_are_new_to_it(train, tmp_path: Path, capsys):
    val = Images.of_shards("val", shards_of(tmp_path / "val", {"8": 8}))
    capsys.readouterr()  # the progress of writing the shards
    assert check_model(provenance.records(train, []), val, "fcn8s.pt", []) == 0
    assert capsys.readouterr().err == ""


def test_the_training_images_of_a_models_parent_count_as_well(train, tmp_path: Path):
    parent = shards_of(tmp_path / "parent", {"5": 5})
    records = provenance.records(train, provenance.records(parent, []))
    val = Images.of_shards("val", shards_of(tmp_path / "val", {"5": 5}))
    with pytest.raises(LeakError, match="1 images of val"):
        check_model(records, val, "fcn8s.pt", [])


@pytest.mark.parametrize("known", [False, True])
def test_a_model_without_a_full_list_of_training_images_is_scored_with_a_warning(train, known, capsys):
    silent = provenance.inherited("model", {}, "ab" * 32, train)
    records = provenance.records(train, silent) if known else None
    assert check_model(records, Images("val", {"8": photo(8)}), "fcn8s.pt", []) is None
    assert "warning: fcn8s.pt" in capsys.readouterr().err


def test_a_known_leak_is_refused_though_other_training_images_are_unknown(train):
    records = provenance.records(train, provenance.inherited("model", {}, "ab" * 32, train))
    with pytest.raises(LeakError):
        check_model(records, Images("val", {"1": None}), "fcn8s.pt", [])
