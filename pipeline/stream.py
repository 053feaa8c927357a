"""Which rank sees which sample at which step: arithmetic on (samples, seed, step, batch, world), no state to lose.

Samples form one endless sequence of positions. Step s takes positions s * batch_size onwards, however many workers
share them; so the sequence does not depend on their number, and any step can be the first.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcn import IGNORE_LABEL
from pipeline.datasets.files import decode_label
from pipeline.errors import UserError
from pipeline.shards import Shards


class Batch(NamedTuple):
    """image: (N, 3, H, W) uint8 RGB.   label: (N, H, W) uint8.   keys: the N samples' names."""

    image: Tensor
    label: Tensor
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """The endless sequence of sample indices.

    sampling: "epochs" visits every sample once before any twice, in an order of its own each epoch;
    "replacement" draws each uniformly from all, as the reference does.
    """

    num_samples: int
    seed: int
    sampling: str = "epochs"

    def __post_init__(self) -> None:
        assert self.num_samples > 0
        assert self.sampling in ("epochs", "replacement"), self.sampling

    def __getitem__(self, position: int) -> int:
        """The index of the sample at a position >= 0."""
        round_, place = divmod(position, self.num_samples)
        return int(_round(self, round_)[place])

    def batches(self, batch_size: int, steps: range, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
        """For each step the indices this rank takes of its batch_size samples: every rank equally many."""
        assert batch_size % world == 0, (batch_size, world)
        for step in steps:
            first = step * batch_size
            yield [self[position] for position in range(first + rank, first + batch_size, world)]


@lru_cache(maxsize=4)
def _round(order: Order, number: int) -> NDArray[np.int64]:
    """The num_samples indices that follow position number * num_samples."""
    rng = np.random.Generator(np.random.PCG64([order.seed, number]))
    if order.sampling == "epochs":
        return rng.permutation(order.num_samples)
    return rng.integers(order.num_samples, size=order.num_samples)


class Samples(Dataset[Batch]):
    """Decoded samples of a folder of shards by index, each a Batch of one."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Batch:
        jpeg, png = self.shards.read(index)
        with Image.open(io.BytesIO(jpeg)) as photo:
            image = np.array(photo.convert("RGB"))
        label = decode_label(png, self.shards.keys[index])
        return Batch(
            torch.from_numpy(image).permute(2, 0, 1)[None],
            torch.from_numpy(label)[None],
            (self.shards.keys[index],),
        )


def collate(samples: Sequence[Batch]) -> Batch:
    """One batch of samples of any sizes: smaller ones are padded at the right and bottom, their labels with void."""
    height = max(sample.image.shape[-2] for sample in samples)
    width = max(sample.image.shape[-1] for sample in samples)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=value)

    return Batch(
        torch.cat([padded(sample.image, 0) for sample in samples]),
        torch.cat([padded(sample.label, IGNORE_LABEL) for sample in samples]),
        tuple(key for sample in samples for key in sample.keys),
    )


def loader(
    shards: Shards, batches: Iterable[list[int]], num_workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Reads, decodes and collates the given batches of indices, in their order; num_workers processes read ahead."""
    reading = DataLoader(
        _Batches(Samples(shards)),
        sampler=batches,  # pyright: ignore[reportArgumentType]  # any iterable serves
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pin,
    )
    for batch in reading:
        if isinstance(batch, UserError):
            raise batch
        yield Batch(batch.image, batch.label, tuple(batch.keys))  # pinning makes keys a list


class _Batches(Dataset[Batch | UserError]):
    """Batches by their indices. An error is handed on: torch would put the reading process's stack in its message."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, indices: list[int]) -> Batch | UserError:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return collate([self.samples[index] for index in indices])
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch
