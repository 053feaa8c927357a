"""A data set drawn on the spot, without a network: SBD for training, VOC for validation, in true layout.

Discs, squares, triangles and crosses on a textured ground, small enough that the stride of the score shows.
The same seed gives the same bytes on every machine: drawing is integer arithmetic, JPEG (libjpeg's integer
DCT, no chroma subsampling) and PNG are coded with fixed settings, and the .mat header holds no date.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from fcn import IGNORE_LABEL
from pipeline.datasets import sbd, voc
from pipeline.errors import DatasetError
from pipeline.progress import bar
from pipeline.shards.labels import encode_label

CLASSES = ("background", "disc", "square", "triangle", "cross")
NUM_SPARE = 2  # images of SBD val and of VOC train, which nothing trains on: the archives have these lists

_SPLITS = ("sbd_train", "sbd_val", "voc_train", "voc_val")  # the place in it is part of each image's seed
_COLOURS = np.array([[0, 0, 0], [190, 70, 60], [60, 150, 70], [70, 90, 190], [190, 170, 60]])  # by class
_MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn by pipeline/datasets/synthetic.py".ljust(
    116
)  # scipy's has the date


def draw(raw: Path, *, num_train: int, num_val: int, image_size: int, seed: int) -> None:
    """Writes raw/benchmark_RELEASE (SBD, num_train in train) and raw/VOCdevkit (VOC2012, num_val in val).

    Listed as seg11valid too is all of VOC val. Unlike the published SBD, these labels have void borders.
    All or nothing: the folder appears when it is complete. An image depends on the seed, its split, its
    number in it and image_size alone, so a larger set begins with the smaller one.
    """
    assert min(num_train, num_val) >= 1, (num_train, num_val)
    assert image_size >= 16, image_size  # in smaller ones a shape has no inside
    assert seed >= 0, seed
    if raw.exists() and (not raw.is_dir() or any(raw.iterdir())):
        raise DatasetError(f"sample: {raw} is not empty; remove it or name another folder to draw into")
    raw.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{raw.name}.", dir=raw.parent) as scratch:
        unfinished = Path(scratch) / raw.name
        _write_sbd(sbd.root(unfinished), num_train, image_size, seed)
        _write_voc(voc.root(unfinished), num_val, image_size, seed)
        os.replace(unfinished, raw)


def picture(
    split: str, number: int, image_size: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) uint8 RGB and label (H, W) uint8, 0..4 of CLASSES or IGNORE_LABEL; H = W = image_size.

    Four to eight shapes, of 14..40 pixels in an image of 128 and in proportion otherwise; later ones may
    cover earlier ones. Around each is a void border one pixel wide, as VOC has it (there about five).
    """
    random = np.random.Generator(np.random.PCG64([seed, _SPLITS.index(split), number]))
    image = _ground(random, image_size)
    label = np.zeros((image_size, image_size), np.uint8)
    for _ in range(random.integers(4, 9)):
        class_index = int(random.integers(1, len(CLASSES)))
        shape = _shape(random, CLASSES[class_index], image_size)
        brightness = random.integers(150, 300)  # of 256
        image[shape] = _COLOURS[class_index] * brightness // 256
        label[_grown(shape)] = IGNORE_LABEL
        label[shape] = class_index
    image += random.integers(-24, 25, image.shape)
    return image.clip(0, 255).astype(np.uint8), label


def _ground(random: np.random.Generator, image_size: int) -> NDArray[np.int64]:
    """(H, W, 3): a grey of its own for each image, with tinted patches of 16 and of 4 pixels."""
    image = np.full((image_size, image_size, 3), random.integers(70, 180))
    for cell, contrast in ((16, 24), (4, 20)):
        num_cells = image_size // cell + 2
        patches = random.integers(-contrast, contrast + 1, (num_cells, num_cells, 3))
        top, left = random.integers(0, cell, 2)  # or the patches would lie on the grid of the strides
        texture = patches.repeat(cell, axis=0).repeat(cell, axis=1)
        image += texture[top : top + image_size, left : left + image_size]
    return image


def _shape(random: np.random.Generator, name: str, image_size: int) -> NDArray[np.bool_]:
    """(H, W), True inside one shape, whose centre lies in the image."""
    size = int(random.integers(14 * image_size // 128, 40 * image_size // 128 + 1))
    centre_y, centre_x = random.integers(0, image_size, 2)
    pointing = 2 * int(random.integers(0, 2)) - 1  # triangles up or down
    y, x = np.ogrid[:image_size, :image_size]
    y, x = 2 * pointing * (y - centre_y), 2 * np.abs(x - centre_x)  # doubled: an odd size has half pixels
    square = (np.abs(y) <= size) & (x <= size)
    if name == "disc":
        return y * y + x * x <= size * size
    if name == "triangle":
        return square & (2 * x <= size + y)
    if name == "cross":
        return square & (3 * np.minimum(np.abs(y), x) <= size)
    assert name == "square", name
    return square


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its eight-fold neighbours."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _write_sbd(root: Path, num_train: int, image_size: int, seed: int) -> None:
    (root / "img").mkdir(parents=True)
    (root / "cls").mkdir()
    for split, num_images in (("train", num_train), ("val", NUM_SPARE)):
        keys = []
        for key, image, label in _pictures(f"sbd_{split}", num_images, image_size, seed):
            (root / "img" / f"{key}.jpg").write_bytes(_jpeg(image))
            (root / "cls" / f"{key}.mat").write_bytes(_mat(label))
            keys.append(key)
        _write_list(root / f"{split}.txt", keys)


def _write_voc(root: Path, num_val: int, image_size: int, seed: int) -> None:
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    keys: dict[str, list[str]] = {"train": [], "val": []}
    for split, num_images in (("train", NUM_SPARE), ("val", num_val)):
        for key, image, label in _pictures(f"voc_{split}", num_images, image_size, seed):
            (root / "JPEGImages" / f"{key}.jpg").write_bytes(_jpeg(image))
            (root / "SegmentationClass" / f"{key}.png").write_bytes(encode_label(label))
            keys[split].append(key)
        _write_list(lists / f"{split}.txt", keys[split])
    _write_list(lists / "trainval.txt", keys["train"] + keys["val"])
    _write_list(lists / "seg11valid.txt", keys["val"])


def _pictures(
    split: str, num_images: int, image_size: int, seed: int
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Key, image and label of each picture of a split."""
    with bar(num_images, f"draw {split}") as progress:
        for number in range(num_images):
            yield f"{split}_{number:06d}", *picture(split, number, image_size, seed)
            progress.update()


def _write_list(path: Path, keys: list[str]) -> None:
    path.write_bytes("".join(f"{key}\n" for key in keys).encode())  # not as text: Windows would add \r


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=0)  # 4:4:4 keeps small shapes' colour
    return file.getvalue()


def _mat(label: NDArray[np.uint8]) -> bytes:
    """The label as SBD's struct, in a MATLAB 5 file that is not deflated."""
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": label}}, do_compression=False)
    return _MAT_HEADER + file.getvalue()[len(_MAT_HEADER) :]
