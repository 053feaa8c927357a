"""The samples of a split, read from its shards and decoded one by one."""

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  # registers torch.ops.image
from PIL import Image
from torch import Tensor

from pipeline.shards.images import is_jpeg_file
from pipeline.shards.labels import decode_label
from pipeline.shards.read import Shards, in_turn

RGB = 3  # torchvision's number for it


class Batch(NamedTuple):
    """Photos with their labels.

    image: (N, 3, H, W) uint8 RGB.
    label: (N, H, W) uint8.
    keys: the N samples' keys.
    """

    image: Tensor
    label: Tensor
    keys: tuple[str, ...]


class Dataset:
    """The decoded samples of a split by index, each a Batch of one at the photo's own size."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Batch:
        key = self.shards.keys[index]
        photo, png = self.shards.read(index)
        label = torch.from_numpy(decode_label(bytes(png), key))
        return Batch(decode_photo(photo)[None], label[None], (key,))

    def read_ahead(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Yield samples in the order of the indices; a thread decodes the next one while the caller uses this one."""
        indices = list(indices)
        with self.shards.threads(1) as thread, self.shards.ahead(in_turn(indices)) as advance:
            following = None
            for index in indices:
                current, following = following, thread.submit(self.__getitem__, index)
                if current:
                    yield current.result()
                    advance()
            if following:
                yield following.result()


def decode_photo(photo: memoryview | bytearray) -> Tensor:
    """Return a photo's pixels, (3, H, W) uint8 RGB, equal to those of Pillow that the manifest describes.

    Pillow decodes PNGs, because torchvision's PNG decoder crashes the process on damaged files. For JPEGs
    torchvision takes a quarter less time than Pillow, and was never seen to crash (tests/shards/test_dataset.py);
    Pillow decodes the damaged files that torchvision refuses. Should torchvision drop its decoder, which it calls
    deprecated, Pillow's lines suffice.

    photo: the file's bytes in writable memory, which is not written to.
    """
    if is_jpeg_file(photo):
        try:
            return torch.ops.image.decode_jpeg(torch.frombuffer(photo, dtype=torch.uint8), RGB, False)
        except RuntimeError:
            pass
    with Image.open(io.BytesIO(photo), formats=["JPEG", "PNG"]) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
