"""The samples of a split, read from its shards and decoded one by one."""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  # registers torch.ops.image
from PIL import Image
from torch import Tensor

from pipeline.shards.labels import decode_label
from pipeline.shards.read import Shards

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
        jpeg, png = self.shards.read(index)
        label = torch.from_numpy(decode_label(bytes(png), key))
        return Batch(decode_jpeg(jpeg)[None], label[None], (key,))

    def read_ahead(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Yield samples in the order of the indices; a thread decodes the next one while the caller uses this one."""
        with ThreadPoolExecutor(1) as thread:
            following = None
            for index in indices:
                current, following = following, thread.submit(self.__getitem__, index)
                if current:
                    yield current.result()
            if following:
                yield following.result()


def decode_jpeg(jpeg: memoryview | bytearray) -> Tensor:
    """Return a photo's pixels, (3, H, W) uint8 RGB, equal to those of Pillow that the manifest describes.

    torchvision's decoder takes a quarter less time than Pillow and, unlike its PNG decoder, was never seen to crash
    (tests/shards/test_dataset.py). Pillow decodes the damaged files that torchvision refuses. Should torchvision drop
    its decoder, which it calls deprecated, Pillow's lines suffice.

    jpeg: the file's bytes in writable memory, which is not written to.
    """
    try:
        return torch.ops.image.decode_jpeg(torch.frombuffer(jpeg, dtype=torch.uint8), RGB, False)
    except RuntimeError:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as photo:
            return torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)
