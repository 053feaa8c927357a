"""The layout of a data set on disk: where its lists, photos and labels lie, and how a label file is decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.lists import check_key, read_bytes, read_ids
from pipeline.errors import DatasetError
from pipeline.shards.images import REMEDY
from pipeline.shards.sample import Sample


@dataclass(frozen=True)
class Layout:
    """Paths below a data set's folder: <lists>/<split>.txt, <images>/<id>.jpg and <labels>/<id><suffix>.

    name: the data set's, for messages.
    decode: decodes a label file's bytes to (H, W) uint8; its second argument is the file's name in messages.
    """

    name: str
    lists: str
    images: str
    labels: str
    suffix: str
    decode: Callable[[bytes, str], NDArray[np.uint8]]

    def ids(self, root: Path, split: str) -> list[str]:
        """Return the ids of a list, in its order."""
        self._require(root)
        return read_ids(root / self.lists, split, self.name)

    def files(self, root: Path, key: str) -> tuple[Path, Path]:
        """Return the paths of an id's photo and label, whether they exist or not."""
        return root / self.images / f"{key}.jpg", root / self.labels / f"{key}{self.suffix}"

    def sample(self, root: Path, key: str, num_classes: int) -> Sample:
        """Return one photo with its label, both decoded in full and checked against each other."""
        self._require(root)
        check_key(key, self.name)
        photo_path, label_path = self.files(root, key)
        where = f"{self.name} {key}"
        jpeg, mask = read_bytes(photo_path, where), read_bytes(label_path, where)
        names = (f"{where}: {photo_path}", f"{where}: {label_path}")
        return Sample.checked(key, jpeg, self.decode(mask, names[1]), num_classes, names, mask)

    def _require(self, root: Path) -> None:
        if not root.is_dir():
            raise DatasetError(f"{self.name}: no data folder {root}; {REMEDY}")
