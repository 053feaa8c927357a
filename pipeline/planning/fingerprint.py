"""The fingerprint of a user's folder: the counts that a plan is derived from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.datasets import own_files
from pipeline.datasets.lists import read_bytes
from pipeline.errors import DatasetError
from pipeline.files import and_more, counted
from pipeline.inspection.describe import missing_classes
from pipeline.progress import bar
from pipeline.shards.labels import check_label, decode_label

SPLITS = ("train", "val")
MAX_CLASSES = 255  # as data.classes of a profile


@dataclass(frozen=True)
class Fingerprint:
    """The counts of a folder. Sizes and pixels are those of the training photos.

    folder: as the user named it.
    classes: names in the order of the label values.
    num_photos: by split.
    median_size, max_size: (height, width), each side on its own, in pixels.
    num_sizes: different sizes.
    pixels: (C,) int64, of each class.
    num_showing: (C,) int64, the photos that show each class.
    num_void: pixels of IGNORE_LABEL.
    pairs: (photo, mask) of each training photo.
    """

    folder: Path
    classes: list[str]
    num_photos: dict[str, int]
    median_size: tuple[int, int]
    max_size: tuple[int, int]
    num_sizes: int
    pixels: NDArray[np.int64]
    num_showing: NDArray[np.int64]
    num_void: int
    pairs: list[tuple[Path, Path]]

    @property
    def shares(self) -> NDArray[np.float64]:
        """(C,) each class's share of the pixels that are not void."""
        return self.pixels / self.pixels.sum()

    @property
    def void_share(self) -> float:
        """The share of void in all pixels."""
        return self.num_void / (self.num_void + int(self.pixels.sum()))


def read(folder: Path) -> Fingerprint:
    """Return the fingerprint of a folder. Every mask of both splits is decoded and checked.

    Raises DatasetError if the folder cannot be trained on: a file is missing or wrong, or no photo shows a class.
    """
    own_files.check_layout(folder)
    classes = own_files.read_classes(folder / own_files.CLASSES)
    _check_classes(folder / own_files.CLASSES, classes)
    content = own_files.read_content(folder)
    names = {path.stem: listed for path, listed in content.lists.items()}
    missing = [split for split in SPLITS if split not in names]
    if missing:
        raise DatasetError(
            f"{folder / 'splits'} has no {' and no '.join(f'{split}.txt' for split in missing)}; lists there: "
            f"{and_more(sorted(names)) or 'none'}. Rename one, or write one: a photo's name a line"
        )
    if shared := sorted(set(names["train"]) & set(names["val"])):
        raise DatasetError(
            f"{folder}: splits/train.txt and splits/val.txt share {counted(len(shared), 'photo')}: {and_more(shared)}; "
            "keep each in one list, or its score says nothing about other photos"
        )
    pairs = {split: _pairs(folder, names[split], content) for split in SPLITS}
    sizes: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    counts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    with bar(sum(map(len, pairs.values())), f"read {folder}", "photo") as progress:
        for split in SPLITS:
            for photo, mask in pairs[split]:
                size = _photo_size(photo)
                label = decode_label(read_bytes(mask, str(folder)), str(mask))
                counts[split].append(check_label(label, size, len(classes), str(mask)))
                sizes[split].append(size)
                progress.update()
    train = np.stack(counts["train"])
    pixels, num_void = train[:, : len(classes)], int(train[:, IGNORE_LABEL].sum())
    if problem := missing_classes(classes, pixels.sum(0), num_void):
        raise DatasetError(
            f"{folder}: {problem}; otherwise add photos that show it to splits/train.txt, or remove it from "
            f"{own_files.CLASSES}. Then run `fcn init` again"
        )
    height, width = np.median(sizes["train"], axis=0).astype(int).tolist()
    max_height, max_width = np.max(sizes["train"], axis=0).tolist()
    return Fingerprint(
        folder,
        classes,
        {split: len(pairs[split]) for split in SPLITS},
        (height, width),
        (max_height, max_width),
        len(set(sizes["train"])),
        pixels.sum(0),
        (pixels > 0).sum(0),
        num_void,
        pairs["train"],
    )


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated:
        raise DatasetError(f"{path} names {and_more(repeated)} more than once; keep one line of each")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DatasetError(f"{path} names {len(classes)} classes; expected 2 to {MAX_CLASSES}, one a line")


def _pairs(folder: Path, listed: Sequence[str], content: own_files.Content) -> list[tuple[Path, Path]]:
    for what, files in (("photo in images/", content.photos), ("mask in masks/", content.masks)):
        missing = [name for name in listed if name not in files]
        if missing:
            raise DatasetError(
                f"{folder}: {len(missing)} names in splits/ have no {what}: {and_more(missing)}; add the files, or "
                "remove the lines"
            )
    return [(content.photos[name], content.masks[name]) for name in listed]


def _photo_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from a photo's header; its pixels are checked when shards are written."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: not a photo that can be read: {error}; save it again") from error
