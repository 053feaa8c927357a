"""pipeline/datasets/own.py: a user's own folder, laid out as docs/own-data.md describes."""

import io
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import own, own_files, splits
from pipeline.datasets.copying import refuse_within
from pipeline.datasets.names import is_key, key_of
from pipeline.errors import DatasetError

CLASSES = ["background", "cat", "dog"]
LABEL = np.array([[0, 1, 2, 255]] * 3, np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


JPEG = encoded(Image.new("RGB", (4, 3), 99), "JPEG")
PNG = RGB_MASK = encoded(Image.new("RGB", (4, 3)), "PNG")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Two images, one with a greyscale and one with a palette mask."""
    folder = tmp_path / "mine"
    for name in own_files.FOLDERS:
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    for key, split in (("a", "train"), ("b-2", "val")):
        (folder / "images" / f"{key}.jpg").write_bytes(JPEG)
        (folder / "splits" / f"{split}.txt").write_text(f"{key}\n")
        mask = Image.fromarray(LABEL)
        if split == "val":
            mask.putpalette(bytes(768))
        mask.save(folder / "masks" / f"{key}.png")
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mine" / "raw"


def resolve(raw: Path, name: str) -> splits.Split:
    options = {"num_classes": len(CLASSES), "count": None, "checks_published": True, "allow_partial": False}
    return splits.resolve(raw, [name], [], **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("name", "key"), [("own/train", "a"), ("own/val", "b-2")])
def test_greyscale_and_palette_masks_are_read_by_their_values_from_a_copy_that_stands_alone(
    mine: Path, raw: Path, name: str, key: str
):
    own.copy(mine, raw, CLASSES)
    shutil.rmtree(mine)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    assert {path.name for path in (raw / "own").iterdir()} == {*own_files.FOLDERS, "classes.txt", "names.csv"}
    split = resolve(raw, name)
    assert split.sources == {key: "own"}
    sample = split.load(key)
    assert sample.image == JPEG
    assert sample.label.tolist() == LABEL.tolist()


@pytest.mark.parametrize("name", ["all-of-2026", "zug 1", "v1.2", "验证"])
def test_a_list_of_any_name_is_a_split(mine: Path, raw: Path, name: str):
    (mine / "splits" / f"{name}.txt").write_text("b-2\na\n")
    own.copy(mine, raw, CLASSES)
    assert list(resolve(raw, f"own/{name}").sources) == ["b-2", "a"]


LEFT_BEHIND = (
    "images/.DS_Store",
    "images/Thumbs.db",
    "images/._a.jpg",
    "images/__MACOSX/a.jpg",
    "masks/desktop.ini",
    "masks/.ipynb_checkpoints/a-checkpoint.png",
    "splits/._train.txt",
    ".gitignore",
)


def test_what_systems_and_tools_leave_is_passed_over_and_counted(mine: Path, raw: Path, capsys):
    for name in LEFT_BEHIND:
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_bytes(b"of the system")
    own.copy(mine, raw, CLASSES)
    assert f"{len(LEFT_BEHIND)} files of systems and tools" in capsys.readouterr().out
    for folder, files in (("images", ["a.jpg", "b-2.jpg"]), ("masks", ["a.png", "b-2.png"])):
        assert sorted(path.name for path in (raw / "own" / folder).iterdir()) == files
    assert resolve(raw, "own/train").sources == {"a": "own"}


@pytest.mark.parametrize(
    "ending",
    [
        ".jpg",
        ".JPG",
        ".jpeg",
        ".JPEG",
        ".Jpg",
        ".jfif",
        ".jpe",
        ".png",
        ".PNG",
        ".tif",
        ".TIFF",
        ".webp",
        ".bmp",
    ],
)
def test_a_photo_of_any_format_and_ending_is_read_and_a_jpeg_keeps_its_bytes(
    mine: Path, raw: Path, ending: str
):
    (mine / "images" / "a.jpg").unlink()
    suffix = own_files.PHOTO_SUFFIXES[ending.lower()]
    kind = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".webp": "WEBP", ".bmp": "BMP"}[suffix]
    data = encoded(Image.new("RGB", (4, 3), 99), kind)
    (mine / "images" / f"a{ending}").write_bytes(data)
    own.copy(mine, raw, CLASSES)
    sample = resolve(raw, "own/train").load("a")
    assert sample.photo.member == ("jpg" if kind == "JPEG" else "image.png")
    if kind == "JPEG":
        assert sample.image == data
    assert sample.label.tolist() == LABEL.tolist()


NAMES = (
    "img_00_jpg.rf.0a1b2c3d4e5f",
    "cam 2/0001",
    "cam_2_0001",
    "cam 2/0001.left",
    "背景/图 1",
    "Übung",
    "x" * 120 + ".1",
    "a,b",
    'say "a"',
    "-",
)


def test_names_of_any_kind_become_keys_and_are_shown_as_the_user_wrote_them(mine: Path, raw: Path):
    for name in NAMES:
        for folder, data, ending in (
            ("images", JPEG, ".JPG"),
            ("masks", (mine / "masks/a.png").read_bytes(), ".png"),
        ):
            (mine / folder / name).parent.mkdir(exist_ok=True)
            (mine / folder / f"{name}{ending}").write_bytes(data)
    (mine / "splits" / "train.txt").write_text("\r\n".join(NAMES), encoding="utf-8-sig")
    own.copy(mine, raw, CLASSES)
    split, names = resolve(raw, "own/train"), own.names(raw / "own")
    assert [names[key].source for key in split.sources] == [f"{name}.JPG" for name in NAMES]
    for key, name in zip(split.sources, NAMES, strict=True):
        assert is_key(key)
        assert key == key_of(name)
        assert names[key].photo == str(mine / "images" / f"{name}.JPG")
        assert split.load(key).label.tolist() == LABEL.tolist()
    (raw / "own" / "masks" / f"{key_of('cam 2/0001')}.png").write_bytes(RGB_MASK)
    with pytest.raises(
        DatasetError, match=r"^own cam 2/0001\.JPG: .*mine/masks/cam 2/0001\.png: a label of mode RGB"
    ):
        split.load(key_of("cam 2/0001"))


def test_the_letters_that_macos_takes_apart_are_the_same_name(mine: Path, raw: Path):
    apart, together = unicodedata.normalize("NFD", "Übung"), unicodedata.normalize("NFC", "Übung")
    assert apart != together
    (mine / "images" / "a.jpg").rename(mine / "images" / f"{apart}.jpg")
    (mine / "masks" / "a.png").rename(mine / "masks" / f"{together}.png")
    (mine / "splits" / "train.txt").write_text(f"{together}\n", encoding="utf-8")
    own.copy(mine, raw, CLASSES)
    assert resolve(raw, "own/train").load(key_of("Übung")).image == JPEG


@pytest.mark.parametrize(
    "line",
    [
        *["a", "a.jpg", "a.png", "images/a.jpg", "images\\a.jpg", "./a.jpg", " a \t", "images/a"],
        *[
            "/home/me/images/a.jpg",
            "../images/a.jpg",
            "C:\\images\\set\\images\\a.JPG",
            "/images/set/images/a",
        ],
    ],
)
def test_a_line_of_a_list_may_name_the_file_as_well(mine: Path, raw: Path, line: str):
    (mine / "splits" / "train.txt").write_text(f"\n{line}\n\n")
    own.copy(mine, raw, CLASSES)
    assert resolve(raw, "own/train").sources == {"a": "own"}


def test_a_line_is_never_taken_for_a_shorter_name(mine: Path, raw: Path):
    (mine / "splits" / "train.txt").write_text("a.left\n")
    own.copy(mine, raw, CLASSES)
    with pytest.raises(DatasetError, match=r"^own a\.left: .*images/a\.left\.jpg is missing"):
        resolve(raw, "own/train").load(key_of("a.left"))


def test_an_imported_photo_is_shown_by_its_name_in_the_export(mine: Path, raw: Path):
    (mine / "names.csv").write_text("key,source\na,export/cam 2/0001.TIF\n")
    own.copy(mine, raw, CLASSES)
    assert own.names(raw / "own")["a"].source == "export/cam 2/0001.TIF"
    assert own.names(raw / "own")["b-2"].source == "b-2.jpg"


def test_a_copy_of_an_earlier_version_is_still_read(mine: Path, raw: Path):
    raw.mkdir(parents=True)
    shutil.copytree(mine, raw / "own")
    assert resolve(raw, "own/train").load("a").image == JPEG


@pytest.mark.parametrize(
    ("mapping", "classes", "label"),
    [
        ({"cat": "animal", "dog": "animal"}, ["background", "animal"], [0, 1, 1, 255]),  # merged
        ({"cat": "katze"}, ["background", "katze", "dog"], [0, 1, 2, 255]),  # renamed
        ({"dog": "void"}, ["background", "cat"], [0, 1, 255, 255]),  # left out
        ({"cat": "background"}, ["background", "dog"], [0, 0, 1, 255]),  # a subset
        ({"background": "void"}, ["dog", "cat"], [255, 1, 0, 255]),  # another order
    ],
)
def test_classes_are_merged_renamed_and_left_out(
    mine: Path, raw: Path, mapping: dict, classes: list, label: list
):
    own.copy(mine, raw, classes, mapping)
    values = own.class_values(raw, classes, mapping)
    split = replace(resolve(raw, "own/train"), num_classes=len(classes), values=values)
    sample = split.load("a")
    assert sample.label.tolist() == [label] * 3
    assert np.array_equal(np.array(Image.open(io.BytesIO(sample.png))), sample.label)
    other = replace(split, values=(0, 1, 255))
    assert split.stamp("a") != replace(split, values=()).stamp("a")
    assert (split.stamp("a") == other.stamp("a")) == (values == other.values)


@pytest.mark.parametrize(
    ("mapping", "classes", "facts"),
    [
        ({"truck": "void"}, ["background", "cat", "dog"], ["truck", "classes.txt", "background, cat, dog"]),
        ({"cat": "void"}, ["background"], ["dog", "`dog: void`"]),
        ({"cat": "dog"}, ["background", "cat", "dog"], ["becomes cat"]),
    ],
)
def test_a_map_that_does_not_fit_the_classes_is_refused(
    mine: Path, raw: Path, mapping: dict, classes: list, facts: list
):
    with pytest.raises(DatasetError, match=r"^data\.map: ") as caught:
        own.copy(mine, raw, classes, mapping)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_a_value_outside_the_masks_own_classes_is_refused_before_it_is_mapped(mine: Path, raw: Path):
    Image.fromarray(LABEL + np.uint8(LABEL == 2)).save(mine / "masks" / "a.png")
    mapping, classes = {"cat": "dog"}, ["background", "dog"]
    own.copy(mine, raw, classes, mapping)
    split = replace(resolve(raw, "own/train"), num_classes=2, values=own.class_values(raw, classes, mapping))
    with pytest.raises(DatasetError, match=r"masks/a\.png: label values 3; expected 0\.\.2"):
        split.load("a")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "masks/a.png").write_bytes(RGB_MASK),
        lambda folder: os.utime(folder / "masks/a.png", (1, 1)),
        lambda folder: (folder / "images/c.jpg").write_bytes(JPEG),
        lambda folder: (folder / "splits/val.txt").unlink(),
        lambda folder: (folder / "classes.txt").write_text("background\n"),
    ],
)
def test_the_fingerprint_of_a_folder_changes_with_what_is_copied(
    mine: Path, change: Callable[[Path], object]
):
    before = own_files.fingerprint(mine)
    (mine / ".DS_Store").touch()
    (mine / "notes.txt").touch()
    assert own_files.fingerprint(mine) == before
    change(mine)
    assert own_files.fingerprint(mine) != before


def test_a_folder_that_is_missing_has_no_fingerprint(tmp_path: Path):
    assert own_files.fingerprint(tmp_path / "nowhere") == ""


Damage = Callable[[Path], object]


def remove(name: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (remove("images"), ["images/", own_files.GUIDE]),
        (remove("masks"), ["masks/", own_files.GUIDE]),
        (remove("splits"), ["splits/", own_files.GUIDE]),
        (remove("classes.txt"), ["classes.txt", own_files.GUIDE]),
        (remove(""), ["no folder", own_files.GUIDE]),
        (
            write("classes.txt", b"background\ndog\ncat\n"),
            ["classes.txt", "[background, dog, cat]", "data.classes", "[background, cat, dog]"],
        ),
        (write("classes.txt", b"\xff\xfe"), ["classes.txt is not a text file"]),
        (write("images/c.heic", b"photo"), ["images", ".bmp: c.heic", "PNG", own_files.GUIDE]),
        (write("images/a.png", PNG), ["a.jpg and", "a.png", "'a'", "rename"]),
        (write("masks/c.jpg", JPEG), ["masks", ".png: c.jpg", "JPEG changes label values"]),
        (write("masks/c.JPEG", JPEG), ["masks", ".png: c.JPEG", "JPEG changes label values"]),
        (write("masks/c.npy", JPEG), ["masks", ".png: c.npy", "`fcn import`", own_files.GUIDE]),
        (write("splits/train.txt", b"a\nb-2\na.jpg\n"), ["train.txt lists more than once: a"]),
        (write("splits/train.txt", b"\n\n"), ["train.txt lists no images"]),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_the_difference(
    mine: Path, raw: Path, damage: Damage, facts: list[str]
):
    damage(mine)
    with pytest.raises(DatasetError, match=r"^data\.source\.own: ") as caught:
        own.copy(mine, raw, CLASSES)
    for fact in (str(mine), *facts):
        assert fact in str(caught.value)
    assert not raw.exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write("masks/a.png", RGB_MASK), "a label of mode RGB with 8 bits"),
        (write("images/a.jpg", encoded(Image.new("RGB", (5, 3)), "JPEG")), "(3, 4), its image (3, 5)"),
        (write("images/a.jpg", JPEG[:-9]), "damaged JPEG"),
        (write("images/a.jpg", b"GIF89a"), "it begins with b'GIF89a'"),
        (remove("masks/a.png"), "masks/a.png is missing"),
        (remove("images/a.jpg"), "images/a.jpg is missing"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named_when_it_is_read(
    mine: Path, raw: Path, damage: Damage, reason: str
):
    damage(mine)
    own.copy(mine, raw, CLASSES)
    with pytest.raises(DatasetError, match=r"^own a(\.jpg)?: ") as caught:
        resolve(raw, "own/train").load("a")
    assert reason in str(caught.value)
    assert str(mine) in str(caught.value)
    assert str(raw) not in str(caught.value)


@pytest.mark.parametrize("source", ["", "raw", "raw/mine", "shards", "../mine/raw", "../../link"])
def test_a_source_among_the_profiles_results_is_refused(tmp_path: Path, source: str):
    outs = tmp_path / "data" / "mine"
    (outs / "raw").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data/mine/raw")
    with pytest.raises(DatasetError, match=rf"^data\.source\.own: {outs / source} lies in {outs}"):
        refuse_within(outs / source, outs, "data.source.own")


@pytest.mark.parametrize("source", ["data/mine2", "data", "elsewhere", "../mine"])
def test_a_source_beside_the_profiles_results_is_accepted(tmp_path: Path, source: str):
    refuse_within(tmp_path / source, tmp_path / "data" / "mine", "data.source.local")


def test_more_classes_than_a_mask_has_values_are_refused_with_a_map_too(mine: Path, raw: Path):
    names = [f"c{number}" for number in range(256)]
    (mine / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    with pytest.raises(DatasetError, match=r"classes\.txt names 256 classes"):
        own.copy(mine, raw, ["c0", "x"], dict.fromkeys(names[1:], "x"))
    (mine / "classes.txt").write_text("".join(f"{name}\n" for name in names[:255]))
    own.copy(mine, raw, ["c0", "x"], dict.fromkeys(names[1:255], "x"))
