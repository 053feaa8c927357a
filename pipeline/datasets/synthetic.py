"""A data set that is drawn on the spot, without a network: SBD for training and VOC for validation, in their layouts.

Discs, squares, triangles and crosses on a textured ground, so small that a net's stride shows in its scores. The same
seed gives the same bytes on every machine: drawing is integer arithmetic, JPEG (libjpeg's integer DCT, no chroma
subsampling) and PNG are encoded with fixed settings, and the .mat header holds no date.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from fcn import IGNORE_LABEL
from pipeline.datasets import sbd, voc
from pipeline.datasets.copying import new_folder
from pipeline.datasets.layout import Layout
from pipeline.progress import bar
from pipeline.shards.labels import encode_label

CLASSES = ("background", "disc", "square", "triangle", "cross")
NUM_SPARE = 2  # images of SBD val and of VOC train, which the archives list and the sample does not train on

_SPLITS = ("sbd_train", "sbd_val", "voc_train", "voc_val")  # a split's index is part of each image's seed
_COLOURS = np.array([[0, 0, 0], [190, 70, 60], [60, 150, 70], [70, 90, 190], [190, 170, 60]])  # by class
# Instead of scipy's header, which holds the date. The name of this module's first days stays: it is part of the bytes
_MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn by pipeline/datasets/sample.py".ljust(116)


def draw(raw: Path, *, num_train: int, num_val: int, image_size: int, seed: int) -> None:
    """Write the new folder `raw` with benchmark_RELEASE (SBD) and VOCdevkit (VOC2012).

    VOC's val is listed as seg11valid too. Unlike the published SBD, these labels have void borders. An image depends
    on the seed, its split, its number in the split and image_size alone, so a larger set starts with the smaller one.

    num_train: images of SBD's train list.
    num_val: images of VOC's val list.
    image_size: height and width of all images, at least 16; smaller shapes would have no inside.
    """
    assert min(num_train, num_val) >= 1, (num_train, num_val)
    assert image_size >= 16, image_size
    assert seed >= 0, seed
    with new_folder(raw) as folder:
        for layout, root, encode, num_images in (
            (sbd.LAYOUT, sbd.root(folder), _mat, {"train": num_train, "val": NUM_SPARE}),
            (voc.LAYOUT, voc.root(folder), encode_label, {"train": NUM_SPARE, "val": num_val}),
        ):
            for name in (layout.lists, layout.images, layout.labels):
                (root / name).mkdir(parents=True, exist_ok=True)
            for split, num in num_images.items():
                _write_split(layout, root, encode, split, num, image_size, seed)
        lists = voc.root(folder) / voc.LAYOUT.lists
        train, val = ((lists / f"{split}.txt").read_bytes() for split in ("train", "val"))
        (lists / "trainval.txt").write_bytes(train + val)
        (lists / "seg11valid.txt").write_bytes(val)


def picture(
    split: str, number: int, image_size: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image, (H, W, 3) uint8 RGB, and its label, (H, W) uint8: 0..4 of CLASSES or IGNORE_LABEL.

    The image shows four to eight shapes, which later ones may cover. At 128 pixels a shape measures 14 to 40 pixels,
    otherwise in proportion. Around each is a void border one pixel wide, as VOC has one of about five.

    split: sbd_train, sbd_val, voc_train or voc_val.
    image_size: H and W.
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
    """Return (H, W, 3): the image's own grey, with tinted patches of 16 and of 4 pixels."""
    image = np.full((image_size, image_size, 3), random.integers(70, 180))
    for cell, contrast in ((16, 24), (4, 20)):
        num_cells = image_size // cell + 2
        patches = random.integers(-contrast, contrast + 1, (num_cells, num_cells, 3))
        top, left = random.integers(0, cell, 2)  # or the patches would lie on the grid of the strides
        texture = patches.repeat(cell, axis=0).repeat(cell, axis=1)
        image += texture[top : top + image_size, left : left + image_size]
    return image


def _shape(random: np.random.Generator, name: str, image_size: int) -> NDArray[np.bool_]:
    """Return (H, W), True inside one shape, whose centre lies in the image."""
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
    """Return the mask and its eight-fold neighbours."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _write_split(
    layout: Layout,
    root: Path,
    encode: Callable[[NDArray[np.uint8]], bytes],
    split: str,
    num_images: int,
    image_size: int,
    seed: int,
) -> None:
    name = f"{layout.name}_{split}"
    keys = [f"{name}_{number:06d}" for number in range(num_images)]
    (root / layout.lists / f"{split}.txt").write_bytes("".join(f"{key}\n" for key in keys).encode())
    with bar(num_images, f"draw {name}") as progress:
        for number, key in enumerate(keys):
            image, label = picture(name, number, image_size, seed)
            photo_path, label_path = layout.files(root, key)
            photo_path.write_bytes(_jpeg(image))
            label_path.write_bytes(encode(label))
            progress.update()


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=0)  # 4:4:4 keeps small shapes' colour
    return file.getvalue()


def _mat(label: NDArray[np.uint8]) -> bytes:
    """Return the label as SBD's struct, in an uncompressed MATLAB 5 file."""
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": label}}, do_compression=False)
    return _MAT_HEADER + file.getvalue()[len(_MAT_HEADER) :]
