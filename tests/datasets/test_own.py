"""pipeline/datasets/own.py: a user's own folder, laid out as docs/own-data.md describes."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import own, splits
from pipeline.datasets.copying import refuse_within
from pipeline.errors import DatasetError

CLASSES = ["background", "cat", "dog"]
LABEL = np.array([[0, 1, 2, 255]] * 3, np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


JPEG = encoded(Image.new("RGB", (4, 3), 99), "JPEG")
RGB_MASK = encoded(Image.new("RGB", (4, 3)), "PNG")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Two images, one with a greyscale and one with a palette mask."""
    folder = tmp_path / "mine"
    for name in own.FOLDERS:
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
    assert {path.name for path in (raw / "own").iterdir()} == {*own.FOLDERS, "classes.txt"}
    split = resolve(raw, name)
    assert split.sources == {key: "own"}
    sample = split.load(key)
    assert sample.image == JPEG
    assert sample.label.tolist() == LABEL.tolist()


def test_a_list_of_any_name_is_a_split_and_hidden_files_are_ignored(mine: Path, raw: Path):
    (mine / "splits" / "all-of-2026.txt").write_text("b-2\na\n")
    (mine / "images" / ".DS_Store").write_bytes(b"of the system")
    own.copy(mine, raw, CLASSES)
    assert list(resolve(raw, "own/all-of-2026").sources) == ["b-2", "a"]


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
        (remove("images"), ["images/", own.GUIDE]),
        (remove("masks"), ["masks/", own.GUIDE]),
        (remove("splits"), ["splits/", own.GUIDE]),
        (remove("classes.txt"), ["classes.txt", own.GUIDE]),
        (remove(""), ["no folder", own.GUIDE]),
        (
            write("classes.txt", b"background\ndog\ncat\n"),
            ["classes.txt", "[background, dog, cat]", "data.classes", "[background, cat, dog]"],
        ),
        (write("classes.txt", b"\xff\xfe"), ["classes.txt is not a text file"]),
        (write("images/c.png", b"png"), ["images", ".jpg: c.png", own.GUIDE]),
        (write("images/c.JPG", JPEG), ["images", ".jpg: c.JPG", own.GUIDE]),
        (write("masks/c.jpg", JPEG), ["masks", ".png: c.jpg", own.GUIDE]),
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
    with pytest.raises(DatasetError, match=r"^own a: ") as caught:
        resolve(raw, "own/train").load("a")
    assert reason in str(caught.value)


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
