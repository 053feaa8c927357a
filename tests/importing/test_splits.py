"""Splits: kept, or stratified and grouped, the same on every machine. Keys: unique and reversible."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.importing import names, splits
from pipeline.importing.splits import Member
from pipeline.importing.write import Settings, import_data
from tests.importing.conftest import encoded, jpeg, pairs, write


def members(num: int) -> list[Member]:
    """Each photo has class 0; every third class 1; every tenth class 2."""
    return [
        Member(
            f"k{n}",
            f"f{n % 7}/v{n // 5}_{n}.jpg",
            frozenset([0, *([1] * (n % 3 == 0)), *([2] * (n % 10 == 0))]),
        )
        for n in range(num)
    ]


def alone(photos: list[Member]) -> dict[str, str]:
    return {photo.key: photo.source for photo in photos}


def test_parts_have_the_stated_shares_of_photos_and_of_every_class():
    photos = members(200)
    train, val = splits.assign(photos, [0.8, 0.2], alone(photos), seed=0)
    assert sorted(train + val) == sorted(photo.key for photo in photos)
    assert len(val) == pytest.approx(40, abs=2)
    by_key = {photo.key: photo.classes for photo in photos}
    for value, total in ((1, 67), (2, 20)):
        assert sum(value in by_key[key] for key in val) == pytest.approx(total / 5, abs=1)


def test_a_seed_gives_the_same_parts_and_another_one_others():
    photos = members(100)
    parts = splits.assign(photos, [0.8, 0.2], alone(photos), seed=0)
    assert parts == splits.assign(photos[::-1], [0.8, 0.2], alone(photos), seed=0)
    assert parts != splits.assign(photos, [0.8, 0.2], alone(photos), seed=1)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(0, 99))
def test_a_group_never_lies_on_both_sides(groups: list[int], seed: int):
    photos = [Member(f"k{n}", f"{g}/{n}.jpg", frozenset([n % 3])) for n, g in enumerate(groups)]
    by_key, _ = splits.group_of(photos, r"^(\d+)/")
    if len(set(groups)) < 2:
        with pytest.raises(DatasetError, match="--group"):
            splits.assign(photos, [0.8, 0.2], by_key, seed)
        return
    parts = splits.assign(photos, [0.8, 0.2], by_key, seed)
    assert all(parts)
    assert sorted(key for part in parts for key in part) == sorted(by_key)
    sides = [{by_key[key] for key in part} for part in parts]
    assert not sides[0] & sides[1]


def test_photos_of_a_folder_or_of_a_video_stay_together(tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for number, video in enumerate("abcdef"):
        files |= pairs(3, folder=f"{video}/")
        files |= {f"images/{video}/p{n}.jpg": jpeg(seed=3 * number + n) for n in range(3)}
    write(tmp_path / "in", files)
    import_data(tmp_path / "in", tmp_path / "folders", Settings())
    assert side_of(tmp_path / "folders", lambda source: source.split("/")[1]) == 1
    import_data(tmp_path / "in", tmp_path / "regex", Settings(group=r"/p(\d)"))
    assert side_of(tmp_path / "regex", lambda source: source[-5]) == 1


def side_of(folder: Path, group) -> int:
    """The largest number of lists that photos of one group are in."""
    with (folder / "names.csv").open(newline="") as file:
        sources = {row["key"]: row["source"] for row in csv.DictReader(file)}
    lists = {path.stem: path.read_text().split() for path in (folder / "splits").iterdir()}
    pairs = {(group(sources[key]), name) for name, keys in lists.items() for key in keys}
    return max(Counter(one for one, _ in pairs).values())


@pytest.mark.parametrize("regex", ["(", "nothing"])
def test_a_group_that_fits_nothing_is_refused(regex: str, tmp_path: Path):
    with pytest.raises(DatasetError, match="--group"):
        import_data(write(tmp_path / "in", pairs()), tmp_path / "out", Settings(group=regex))


@pytest.mark.parametrize("text", ["0.8", "a/b", "1/0", "-1/2", "nan/1", "inf/1", "1/1/1/1", ""])
def test_shares_that_are_none_are_refused(text: str):
    with pytest.raises(DatasetError, match="--split"):
        splits.ratios(text)


def test_three_shares_give_a_test_list(tmp_path: Path):
    result = import_data(write(tmp_path / "in", pairs(20)), tmp_path / "out", Settings(shares="70/15/15"))
    assert result.lists == {"test": 3, "train": 14, "val": 3}


def test_folds_hold_every_photo_once_in_val_and_never_on_both_sides(tmp_path: Path):
    result = import_data(write(tmp_path / "in", pairs(11)), tmp_path / "out", Settings(folds=3))
    lists = {path.stem: path.read_text().split() for path in (tmp_path / "out/splits").iterdir()}
    assert set(result.lists) == {
        "train",
        "val",
        *(f"fold{n}-{part}" for n in (1, 2, 3) for part in ("train", "val")),
    }
    assert sorted(key for n in (1, 2, 3) for key in lists[f"fold{n}-val"]) == [
        f"p{n}" for n in sorted(range(11), key=str)
    ]
    for n in (1, 2, 3):
        assert not set(lists[f"fold{n}-val"]) & set(lists[f"fold{n}-train"])


GIVEN = {
    "an outer folder": {f"training_data/{split}/images": split for split in ("train", "val", "test")},
    "an outer folder of another word": {
        f"test_data/images/{split}": split for split in ("train", "val", "test")
    },
    "folders": {"train/images": "train", "valid/images": "val", "test/images": "test"},
    "inner folders": {"images/training": "train", "images/validation": "val", "images/testing": "test"},
    "one name": {"train_images": "train", "val_images": "val", "test_images": "test"},
    "one name, turned": {"images-train": "train", "images-valid": "val", "images-test": "test"},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_splits_that_folders_state_are_kept(kind: str, tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for number, folder in enumerate(GIVEN[kind]):
        files[f"{folder}/p{number}.jpg"] = jpeg(seed=number)
        files[f"{folder.replace('images', 'masks')}/p{number}.png"] = pairs()["masks/p0.png"]
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings(shares="0.5/0.5"))
    for number, split in enumerate(GIVEN[kind].values()):
        assert (tmp_path / f"out/splits/{split}.txt").read_text() == f"p{number}\n"


@pytest.mark.parametrize(
    "line",
    [
        "p{}",
        "p{}.jpg",
        "images/p{}.jpg",
        "images\\p{}.jpg",
        "./images/p{}.jpg",
        "/images/p{}.jpg masks/p{}.png",
        "p{} 1 2 3",
        "/p{}.jpg",
        "p{} -1",
        "images/p{}.jpg,masks/p{}.png",
        "/home/me/the set/images/p{}.jpg",
        "../images/p{}.jpg\t../masks/p{}.png",
        "C:\\sets\\images\\p{}.jpg",
    ],
)
def test_lists_are_kept_with_blank_lines_windows_line_ends_and_a_byte_order_mark(line: str, tmp_path: Path):
    def text(*numbers: int) -> bytes:
        return ("\ufeff\r\n" + "".join(f"{line.format(n, n)}\r\n\r\n" for n in numbers)).encode()

    files = pairs(4) | {"lists/train.txt": text(0, 1), "lists/val.txt": text(3)}
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert (tmp_path / "out/splits/train.txt").read_text() == "p0\np1\n"
    assert (tmp_path / "out/splits/val.txt").read_text() == "p3\n"
    assert result.lists == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    "line", ["{}.jpg", "{}.jpg,{}.png", "images/{}.jpg masks/{}.png", '"{}.jpg" "{}.png"']
)
def test_names_with_spaces_are_read_whole_from_a_list(line: str, tmp_path: Path):
    names = ["img", "img (1)", "img (2)", "other"]
    files: dict[str, bytes | str] = {f"images/{name}.jpg": jpeg(seed=len(name)) for name in names}
    files |= {f"masks/{name}.png": pairs()["masks/p0.png"] for name in names if name != "img (2)"}
    files |= {
        f"{split}.txt": "".join(f"{line.format(name, name)}\n" for name in of_split)
        for split, of_split in {"train": ["img"], "val": ["img (1)", "img (2)", "other"]}.items()
    }
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.lists == {"train": 1, "val": 2}
    assert any("img (2)" in sentence for sentence in result.decisions)


def test_a_line_that_names_no_photo_is_said(tmp_path: Path):
    lines = "p0\nmissing_photo\np1\nset2/images/p2.jpg\n/set2/p2.jpg\n"
    files = pairs(4) | {"train.txt": lines, "val.txt": "p3", "test.txt": "other_photo\n"}
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.lists == {"train": 2, "val": 1}
    for name in ("missing_photo", "other_photo"):
        assert any(name in sentence for sentence in result.decisions)


@pytest.mark.parametrize(
    ("given", "train", "val"),
    [
        ({"val": (4, 5)}, (0, 1, 2, 3), (4, 5)),
        ({"train": (0, 1, 2)}, (0, 1, 2), (3, 4, 5)),
        ({"train": (0, 1), "test": (5,)}, (0, 1), (2, 3, 4)),
    ],
)
def test_of_one_list_the_other_photos_are_the_other(given: dict, train: tuple, val: tuple, tmp_path: Path):
    lists = {f"{name}.txt": "".join(f"p{n}\n" for n in numbers) for name, numbers in given.items()}
    import_data(write(tmp_path / "in", pairs(6) | lists), tmp_path / "out", Settings())
    for name, numbers in (("train", train), ("val", val)):
        assert (tmp_path / f"out/splits/{name}.txt").read_text() == "".join(f"p{n}\n" for n in numbers)


def test_with_one_list_split_divides_all_photos(tmp_path: Path, fcn: Callable, capsys):
    masks = {f"masks/p{n}.png": encoded(np.resize(np.uint8([0, 1, 2 * (n > 2)]), (12, 16))) for n in range(6)}
    write(tmp_path / "in", pairs(6) | masks | {"train.txt": "p0\np1\np2\n", "classes.txt": "a\nb\nc\n"})
    assert fcn("import", tmp_path / "in", tmp_path / "kept") == 0
    assert "--split" in capsys.readouterr().out  # class c is in no photo of train
    assert fcn("import", tmp_path / "in", tmp_path / "out", "--split", "0.5/0.5") == 0
    assert "warning" not in capsys.readouterr().out
    lists = [(tmp_path / f"out/splits/{name}.txt").read_text().split() for name in ("train", "val")]
    assert [len(keys) for keys in lists] == [3, 3]


def test_a_list_of_all_photos_is_divided(tmp_path: Path):
    write(tmp_path / "in", pairs(6) | {"train.txt": "".join(f"p{n}\n" for n in range(6))})
    lists = import_data(tmp_path / "in", tmp_path / "out", Settings()).lists
    assert sum(lists.values()) == 6
    assert min(lists.values()) > 0


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_photo_in_train_and_in_another_list_is_refused(other: str, tmp_path: Path):
    files = pairs(4) | {"train.txt": "p0\np1\n", "val.txt": "p3\n"}
    files[f"{other}.txt"] = "p1\np2\n"
    with pytest.raises(DatasetError, match=rf"{other}.*images/p1\.jpg"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())


def test_a_test_split_is_kept_while_the_rest_is_divided(tmp_path: Path):
    write(tmp_path / "in", pairs(10) | {"test.txt": "p4\np5\n"})
    result = import_data(tmp_path / "in", tmp_path / "out", Settings(folds=2))
    assert (tmp_path / "out/splits/test.txt").read_text() == "p4\np5\n"
    assert result.lists["train"] + result.lists["val"] == 8
    assert result.lists["fold1-val"] + result.lists["fold2-val"] == 8


# Keys

SOURCES = [
    "a/N_1_jpg.rf.51d3a9.jpg",
    "cam 2/0001.JPG",
    "cam 3/0001.JPG",
    "straße.jpg",
    "裂缝.jpg",
    "背景.jpg",
    "A.jpg",
    "b/a.jpg",
    "x.jpg",
]


def test_keys_are_unique_and_plain_where_the_name_allows():
    keys = names.keys(SOURCES)
    assert keys["x.jpg"] == "x"
    assert keys["a/N_1_jpg.rf.51d3a9.jpg"] == "N_1_jpg_rf_51d3a9"
    assert len({key.casefold() for key in keys.values()}) == len(SOURCES)


@given(st.lists(st.text(min_size=1), unique=True, max_size=20))
def test_any_names_get_unique_keys_that_do_not_depend_on_the_order(sources: list[str]):
    sources = [source for source in sources if source.isprintable()]
    keys = names.keys(sources)
    assert keys == names.keys(sources[::-1])
    assert len({key.casefold() for key in keys.values()}) == len(sources)
    assert all(
        key and set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
        for key in keys.values()
    )


def test_a_new_photo_changes_no_other_key():
    before = names.keys(SOURCES)
    after = names.keys([*SOURCES, "new.jpg", "d/裂.jpg"])
    assert {source: after[source] for source in SOURCES} == before


def test_names_csv_leads_back_to_the_source(tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for number, name in enumerate(["cam 2/ä, b.JPG", "cam 3/ä, b.JPG", '裂 "x".jpg']):
        files[f"images/{name}"] = jpeg(seed=number)
        files[f"masks/{name.rpartition('.')[0]}.png"] = encoded(np.eye(12, 16, dtype=np.uint8))
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings(group="(.*)"))
    with (tmp_path / "out/names.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == {name for name in files if name.startswith("images/")}
    for row in rows:
        assert (tmp_path / f"out/images/{row['key']}.jpg").read_bytes() == files[row["source"]]


def smooth(seed: int) -> Image.Image:
    """A picture with large shapes, as photos have."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("options", [{"shares": "0.5/0.5"}, {"folds": 3}])
def test_near_duplicates_never_lie_on_both_sides(tmp_path: Path, options: dict):
    mask = encoded(np.resize(np.array([0, 1, 2], np.uint8), (120, 160)))
    files: dict[str, bytes | str] = {}
    for number in range(8):
        picture = smooth(number)
        for name, copy in (("a", picture), ("b", picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            files[f"images/{name}{number}.jpg"] = encoded(copy, "JPEG", quality=90 if name == "a" else 40)
            files[f"masks/{name}{number}.png"] = mask
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings(**options))
    for path in (tmp_path / "out" / "splits").glob("*.txt"):
        keys = set(path.read_text().split())
        for number in range(8):
            assert (f"a{number}" in keys) == (f"b{number}" in keys), path
    assert "16 near duplicates in 8 groups stay together" in " ".join(
        json.loads((tmp_path / "out" / "import.json").read_text())["decisions"]
    )


def test_an_export_whose_photos_are_all_in_test_is_refused_with_the_remedy(tmp_path: Path):
    files = {f"test/{path}": content for path, content in pairs().items()}
    with pytest.raises(DatasetError, match=r"test split.*[Rr]ename"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings(shares="0.5/0.5"))
