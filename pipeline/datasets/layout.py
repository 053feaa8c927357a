"""Where a data set keeps its lists, images and labels: what data sets differ in, and how all of them are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.labels import (
    check_key,
    read_bytes,
    read_ids,
    require_folder,
)
from pipeline.shards.sample import Sample


@dataclass(frozen=True)
class Layout:
    """Names below a data set's folder: <lists>/<split>.txt, <images>/<id>.jpg, <labels>/<id><suffix>.

    name: for messages.   decode: a label file's bytes -> (H, W) uint8; told where they are from, for its errors.
    """

    name: str
    lists: str
    images: str
    labels: str
    suffix: str
    decode: Callable[[bytes, str], NDArray[np.uint8]]

    def ids(self, root: Path, split: str) -> list[str]:
        """The ids of a list, in its order."""
        require_folder(root, self.name)
        return read_ids(root / self.lists, split, self.name)

    def files(self, root: Path, key: str) -> tuple[Path, Path]:
        """Where an id's image and label lie; not checked to exist."""
        return root / self.images / f"{key}.jpg", root / self.labels / f"{key}{self.suffix}"

    def sample(self, root: Path, key: str, num_classes: int) -> Sample:
        """One image and its label, both decoded in full and found to fit each other; DatasetError if not."""
        require_folder(root, self.name)
        check_key(key, self.name)
        image, mask = self.files(root, key)
        where = f"{self.name} {key}"
        jpeg, truth = read_bytes(image, where), read_bytes(mask, where)
        label, names = self.decode(truth, f"{where}: {mask}"), (f"{where}: {image}", f"{where}: {mask}")
        return Sample.checked(key, jpeg, label, num_classes, names, truth)
