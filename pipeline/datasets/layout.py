"""The layout of a data set on disk: where its lists, photos and labels lie, and how a label file is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.datasets.lists import check_key, read_bytes, read_ids
from pipeline.errors import DatasetError
from pipeline.shards.images import REMEDY
from pipeline.shards.labels import check_label
from pipeline.shards.sample import Sample


class Shown(NamedTuple):
    """The names of a sample and its files in messages, where they differ from those that are read."""

    name: str
    photo: str
    label: str


@dataclass(frozen=True)
class Layout:
    """Paths below a data set's folder: <lists>/<split>.txt, <images>/<id>.jpg and <labels>/<id><suffix>.

    name: the data set's, for messages.
    decode: decodes a label file's bytes to (H, W) uint8; its second argument is the file's name in messages.
    photo_suffixes: the endings of a photo that are looked for, in order.
    shown: returns the user's names of an id below a data set's folder, or None.
    """

    name: str
    lists: str
    images: str
    labels: str
    suffix: str
    decode: Callable[[bytes, str], NDArray[np.uint8]]
    photo_suffixes: tuple[str, ...] = (".jpg",)
    shown: Callable[[Path, str], Shown | None] | None = None

    def ids(self, root: Path, split: str) -> list[str]:
        """Return the ids of a list, in its order."""
        self._require(root)
        return read_ids(root / self.lists, split, self.name)

    def files(self, root: Path, key: str) -> tuple[Path, Path]:
        """Return the paths of an id's photo and label, whether they exist or not."""
        photos = [root / self.images / f"{key}{suffix}" for suffix in self.photo_suffixes]
        photo = photos[0] if len(photos) == 1 else next((path for path in photos if path.exists()), photos[0])
        return photo, root / self.labels / f"{key}{self.suffix}"

    def sample(self, root: Path, key: str, num_classes: int, values: Sequence[int] = ()) -> Sample:
        """Return one photo with its label, both decoded in full and checked against each other.

        values: what each value of the label's file becomes; empty: the same.
        """
        self._require(root)
        check_key(key, self.name)
        photo_path, label_path = self.files(root, key)
        shown = (self.shown and self.shown(root, key)) or Shown(key, str(photo_path), str(label_path))
        where = f"{self.name} {shown.name}"
        photo = read_bytes(photo_path, where, shown.photo)
        mask = read_bytes(label_path, where, shown.label)
        names = (f"{where}: {shown.photo}", f"{where}: {shown.label}")
        label = self.decode(mask, names[1])
        if values:
            check_label(label, label.shape, len(values), names[1])
            table = np.full(256, IGNORE_LABEL, np.uint8)
            table[: len(values)] = values
            label, mask = table[label], b""
        return Sample.checked(key, photo, label, num_classes, names, mask)

    def _require(self, root: Path) -> None:
        if not root.is_dir():
            raise DatasetError(f"{self.name}: no data folder {root}; {REMEDY}")
