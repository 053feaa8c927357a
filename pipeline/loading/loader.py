"""The batches a worker trains on, each a function of (manifest, seed, step, batch size, transforms) and its rank.

All workers together take the samples that order.py says, dealt out in turn. Where the images of a step differ in size
they are padded at the right and bottom, black with a void label, to the greatest height and width of the *whole* step,
which every worker knows from the manifest. So what a net makes of an image does not depend on who else reads it with
whom: the summed loss and the gradient of a step are those of its padded images one by one, however they are dealt out
(but for batch norm in training, which mixes the images of a worker).

They are those of the bare images one by one where nothing is padded: with images of one size, with a crop, or in a
size bucket. Otherwise padding changes the scores of pixels nearer to it than half the net's field of view, because
black at the border is not what a convolution's own padding is; it changes no other, and is itself never scored.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcn import IGNORE_LABEL
from pipeline.errors import UserError
from pipeline.loading.sampler import Buckets, Order
from pipeline.loading.transforms import Change, Transforms, apply, draw, largest
from pipeline.shards.dataset import Batch, Samples
from pipeline.shards.read import Shards

PREFETCH = 4  # batches that each process reads ahead; with 2 it waited now and then


@dataclass(frozen=True)
class Stream:
    """The batches of one of `world` workers by number; any can be asked for, nothing before it is read.

    batch_size: images a step over all workers.   accumulation: how many batches make a step; number n is of step
    n // accumulation.   sampling: see order.Order.   size_buckets: see order.Buckets.
    """

    shards: Shards
    batch_size: int
    seed: int
    sampling: str = "epochs"
    size_buckets: bool = False
    transforms: Transforms = field(default_factory=Transforms)
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert self.batch_size % (self.world * self.accumulation) == 0, self
        assert 0 <= self.rank < self.world, (self.rank, self.world)

    @cached_property
    def order(self) -> Order | Buckets:
        if self.size_buckets:
            return Buckets(self.sizes, self.batch_size, self.seed, self.sampling)
        return Order(len(self.shards), self.seed, self.sampling)

    @cached_property
    def sizes(self) -> NDArray[np.integer]:
        """(num_samples, 2) height and width as the manifest has them."""
        return np.stack([self.shards.table[side].to_numpy() for side in ("height", "width")], axis=1)

    @cached_property
    def _samples(self) -> Samples:
        return Samples(self.shards)

    def keys(self, step: int) -> list[str]:
        """The names of the images that all workers together take at a step, in their order."""
        return [self.shards.keys[index] for index in self.order.step(step, self.batch_size)]

    def positions(self, number: int) -> range:
        """Where in the endless sequence this worker's images of a batch are: from its rank on, each world-th."""
        num = self.batch_size // self.accumulation
        return range(number * num + self.rank, (number + 1) * num, self.world)

    def read(self, number: int, memory: Tensor | None = None) -> Batch:
        """This worker's images of a batch.   memory: (most_bytes,) uint8 to put them into, instead of new memory."""
        step, positions = number // self.accumulation, self.positions(number)
        first, indices = step * self.batch_size, self.order.step(step, self.batch_size)
        changes = [self._change(index, position) for position, index in enumerate(indices, start=first)]
        height, width = (max(sides) for sides in zip(*(change.size for change in changes), strict=True))
        image, label = _views(memory, len(positions), height, width)
        for slot, position in enumerate(positions):
            sample = self._samples[indices[position - first]]
            photo, truth = apply(changes[position - first], sample.image[0], sample.label[0])
            _pad_into(image[slot], photo, 0)
            _pad_into(label[slot], truth, IGNORE_LABEL)
        return Batch(
            image, label, tuple(self.shards.keys[indices[position - first]] for position in positions)
        )

    def _change(self, index: int, position: int) -> Change:
        """What happens to a sample at a position, known from the manifest before it is read."""
        height, width = self.sizes[index].tolist()
        return draw(self.transforms, (height, width), self.seed, position)

    @property
    def most_bytes(self) -> int:
        """What no batch of this worker takes more than."""
        height, width = self.sizes.max(0).tolist()
        height, width = largest(self.transforms, (height, width))
        return 4 * height * width * self.batch_size // (self.world * self.accumulation)


def _views(memory: Tensor | None, num: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """image (num, 3, height, width) and label (num, height, width) one after the other in memory.

    The colours of a pixel lie side by side, as decoders give them.
    """
    area = num * height * width
    if memory is None:
        memory = torch.empty(4 * area, dtype=torch.uint8)
    image = memory[: 3 * area].view(num, height, width, 3).permute(0, 3, 1, 2)
    return image, memory[3 * area : 4 * area].view(num, height, width)


def _pad_into(whole: Tensor, part: Tensor, padding: int) -> None:
    """Writes part to the upper left of whole, and padding to the rest."""
    height, width = part.shape[-2:]
    if part.shape != whole.shape:
        whole[..., height:, :] = padding
        whole[..., :height, width:] = padding
    whole[..., :height, :width].copy_(part)


def loader(
    stream: Stream, numbers: Iterable[int], num_workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """The stream's batches of these numbers, in their order; num_workers processes read ahead.

    pin: into memory that a GPU can fetch from by itself.
    """
    if num_workers == 0:
        for number in numbers:
            yield _copy(stream.read(number), pin) if pin else stream.read(number)
        return
    # The processes write to memory that they share with this one from the start, and that is used again and again:
    # to share each batch anew, as torch does, takes as long as half of the decoding. A batch is copied out before the
    # next is asked for, so one slot more than there are batches under way is enough.
    slots = [_shared(stream.most_bytes) for _ in range(PREFETCH * num_workers + 1)]
    reading = DataLoader(
        _IntoSlots(stream, slots),
        sampler=((number, turn % len(slots)) for turn, number in enumerate(numbers)),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",  # or the slots would not be shared
    )
    for turn, outcome in enumerate(reading):
        if isinstance(outcome, UserError):
            raise outcome
        (height, width), keys = outcome
        yield _copy(Batch(*_views(slots[turn % len(slots)], len(keys), height, width), keys), pin)


def _copy(batch: Batch, pin: bool) -> Batch:
    def copied(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, pin_memory=pin).copy_(tensor)

    return Batch(copied(batch.image), copied(batch.label), batch.keys)


def _shared(num_bytes: int) -> Tensor:
    """Memory that this process and those it starts by a fork both see; no page of it exists before it is used."""
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


class _IntoSlots(Dataset[tuple[tuple[int, int], tuple[str, ...]] | UserError]):
    """Reads a batch into a slot; gives its height and width and its keys.

    An error is handed on, as torch would put the reading process's stack in its message.
    """

    def __init__(self, stream: Stream, slots: list[Tensor]):
        self.stream, self.slots = stream, slots

    def __getitem__(self, item: tuple[int, int]) -> tuple[tuple[int, int], tuple[str, ...]] | UserError:  # pyright: ignore[reportIncompatibleMethodOverride]
        number, slot = item
        try:
            _, label, keys = self.stream.read(number, self.slots[slot])
        except UserError as error:
            return error
        return (label.shape[1], label.shape[2]), keys


def _as_it_is(item: Any) -> Any:
    return item
