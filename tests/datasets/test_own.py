"""pipeline/datasets/own.py: a folder of one's own, laid out as docs/own-data.md says."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import own, splits
from pipeline.datasets.copying import refuse_within
from pipeline.errors import DatasetError

CLASSES = ["background", "cat", "dog"]
LABEL = np.array([[0, 1, 2, 255]] * 3, np.uint8)


def jpeg(size: tuple[int, int] = (4, 3)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, 99).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Two images, one with a greyscale and one with a palette mask."""
    folder = tmp_path / "mine"
    for name in own.FOLDERS:
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    for key, split in (("a", "train"), ("b-2", "val")):
        (folder / "images" / f"{key}.jpg").write_bytes(jpeg())
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
    return splits.resolve(
        raw,
        [name],
        [],
        num_classes=len(CLASSES),
        count=None,
        checks_published=True,
        allow_partial=False,
    )


def complaint(mine: Path, raw: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        own.copy(mine, raw, CLASSES)
    assert not raw.exists()
    return str(caught.value)


@pytest.mark.parametrize(("name", "key"), [("own/train", "a"), ("own/val", "b-2")])
def test_greyscale_and_palette_masks_are_read_by_their_values(mine: Path, raw: Path, name: str, key: str):
    own.copy(mine, raw, CLASSES)
    split = resolve(raw, name)
    assert split.sources == {key: "own"}
    sample = split.load(key)
    assert sample.jpeg == (mine / "images" / f"{key}.jpg").read_bytes()
    assert sample.label.tolist() == LABEL.tolist()


def test_the_copy_stands_alone_and_alone_in_its_folder(mine: Path, raw: Path):
    own.copy(mine, raw, CLASSES)
    shutil.rmtree(mine)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    assert sorted(path.name for path in (raw / "own").iterdir()) == [
        "classes.txt",
        "images",
        "masks",
        "splits",
    ]
    assert resolve(raw, "own/train").load("a").key == "a"


def test_a_list_of_any_name_is_a_split(mine: Path, raw: Path):
    (mine / "splits" / "all-of-2026.txt").write_text("b-2\na\n")
    own.copy(mine, raw, CLASSES)
    assert list(resolve(raw, "own/all-of-2026").sources) == ["b-2", "a"]


def remove(name: str) -> object:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(name: str, content: bytes) -> object:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("images"), "{mine} has no images/; see docs/own-data.md"),
        (remove("masks"), "{mine} has no masks/; see docs/own-data.md"),
        (remove("splits"), "{mine} has no splits/; see docs/own-data.md"),
        (remove("classes.txt"), "{mine} has no classes.txt; see docs/own-data.md"),
        (lambda folder: shutil.rmtree(folder), "no folder {mine}; docs/own-data.md says what it must hold"),
        (
            write("classes.txt", b"background\ndog\ncat\n"),
            "{mine}/classes.txt names 3 classes, [background, dog, cat], and the profile's data.classes 3, "
            "[background, cat, dog]; both must be the same, in the order of the label values",
        ),
        (write("classes.txt", b"\xff\xfe"), "{mine}/classes.txt is not a text file"),
        (
            write("images/c.png", b"png"),
            "1 files of {mine}/images are not .jpg: c.png; docs/own-data.md shows how to convert them",
        ),
        (write("images/c.JPG", jpeg()), "1 files of {mine}/images are not .jpg: c.JPG"),
        (write("masks/c.jpg", jpeg()), "1 files of {mine}/masks are not .png: c.jpg"),
    ],
)
def test_a_folder_that_is_not_laid_out_so_is_told_what_is_wrong(mine: Path, raw: Path, damage, reason: str):
    damage(mine)
    assert complaint(mine, raw).startswith(f"data.source.own: {reason.format(mine=mine)}")


def test_a_system_file_that_nobody_sees_is_no_image(mine: Path, raw: Path):
    (mine / "images" / ".DS_Store").write_bytes(b"odd")
    own.copy(mine, raw, CLASSES)


def rgb_mask() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write("masks/a.png", rgb_mask()), "a label of mode RGB with 8 bits per channel; save class indices"),
        (write("images/a.jpg", jpeg((5, 3))), "label is (3, 4), its image (3, 5)"),
        (write("images/a.jpg", jpeg()[:-9]), "damaged JPEG"),
        (write("images/a.jpg", rgb_mask()), "not a JPEG, it begins with b'\\x89PNG"),
        (remove("masks/a.png"), "masks/a.png is missing"),
        (remove("images/a.jpg"), "images/a.jpg is missing"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named_when_it_is_read(mine: Path, raw: Path, damage, reason: str):
    damage(mine)
    own.copy(mine, raw, CLASSES)
    with pytest.raises(DatasetError) as caught:
        resolve(raw, "own/train").load("a")
    assert str(caught.value).startswith("own a: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("where", ["", "raw", "raw/mine", "shards", "../mine/raw"])
def test_a_source_among_the_profiles_results_is_refused(tmp_path: Path, where: str):
    outs = tmp_path / "data" / "mine"
    with pytest.raises(DatasetError, match=r"^data\.source\.own: .* lies in .*; move it elsewhere$"):
        refuse_within(outs / where, outs, "data.source.own")


def test_a_source_behind_a_link_into_the_results_is_refused(tmp_path: Path):
    (tmp_path / "data" / "mine" / "raw").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data/mine/raw")
    with pytest.raises(DatasetError, match="lies in"):
        refuse_within(tmp_path / "link", tmp_path / "data" / "mine", "data.source.local")


def test_a_source_beside_the_profiles_results_is_fine(tmp_path: Path):
    for where in ("data/mine2", "data", "elsewhere", "../mine"):
        refuse_within(tmp_path / where, tmp_path / "data" / "mine", "data.source.local")
