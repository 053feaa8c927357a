"""The batches that a worker trains on, each a function of (manifest, seed, step, batch size, transforms) and its rank.

All workers together take the samples of a step (sampler.py), dealt out in turn. Images of different sizes are padded
at the right and bottom, black with a void label, to the largest height and width of the *whole* step, which each
worker reads from the manifest. So a step's summed loss and gradient do not depend on how its images are dealt out,
except for batch norm in training, which mixes the images of a worker.

No padding is needed if the images have one size, are cropped, or come from a bucket of one size. Otherwise padding
changes the scores of pixels nearer to it than half the net's field of view, because a black border differs from a
convolution's own padding. Padding itself is never scored.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, tee
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data

from fcn import IGNORE_LABEL
from pipeline.config.training import Transforms
from pipeline.errors import UserError
from pipeline.loading.sampler import WINDOW_BLOCKS, BlockOrder, Buckets, Order
from pipeline.loading.transforms import Change, apply, draw, largest
from pipeline.shards.dataset import Batch, Dataset
from pipeline.shards.read import Shards

PREFETCH = 4  # batches that each loader process reads ahead; with 2 the loop sometimes waited


@dataclass(frozen=True)
class Stream:
    """One worker's batches by number. Any batch can be read without reading earlier ones.

    batch_size: images per step, over all workers.
    seed: of order and transforms.
    sampling: see sampler.Order.
    size_buckets: see sampler.Buckets.
    accumulation: batches per step; batch n belongs to step n // accumulation.
    rank: this worker's number, 0 .. world_size - 1.
    by_blocks: see sampler.BlockOrder.
    workers_on_node: those that share this worker's cache, itself included.
    """

    shards: Shards
    batch_size: int
    seed: int
    sampling: str = "epochs"
    size_buckets: bool = False
    transforms: Transforms = field(default_factory=Transforms)
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1
    by_blocks: bool = False
    workers_on_node: int = 1

    def __post_init__(self) -> None:
        assert self.batch_size % (self.world_size * self.accumulation) == 0, self
        assert 0 <= self.rank < self.world_size, (self.rank, self.world_size)

    @cached_property
    def order(self) -> Order | Buckets:
        if self.size_buckets:
            return Buckets(self.shards.sizes, self.batch_size, self.seed, self.sampling)
        if self.by_blocks:
            first_sample = self.shards.layout.first_sample
            return BlockOrder(len(self.shards), self.seed, "epochs", {}, first_sample, self.batch_size)
        return Order(len(self.shards), self.seed, self.sampling)

    @cached_property
    def _samples(self) -> Dataset:
        return Dataset(self.shards)

    def keys(self, step: int) -> list[str]:
        """Return the keys of the images that all workers together take at a step, in order."""
        return [self.shards.keys[index] for index in self.order.step(step, self.batch_size)]

    def positions(self, number: int) -> range:
        """Return the positions, in the endless sequence of samples, of this worker's images of a batch."""
        num_images = self.batch_size // self.accumulation
        return range(number * num_images + self.rank, (number + 1) * num_images, self.world_size)

    def indices(self, numbers: Iterable[int]) -> NDArray[np.int64]:
        """Return the indices of this worker's images of batches, (T, K) for T numbers."""
        if isinstance(self.order, Buckets):
            steps = [
                (self.order.step(n // self.accumulation, self.batch_size), self.positions(n)) for n in numbers
            ]
            return np.array([[step[p % self.batch_size] for p in positions] for step, positions in steps])
        width = len(self.positions(0))
        first = np.fromiter(numbers, np.int64)[:, None] * (width * self.world_size) + self.rank
        return self.order.at(first + np.arange(width) * self.world_size)

    def ahead(self, numbers: Iterable[int]) -> AbstractContextManager[Callable[[], None]]:
        """Have the blocks of these batches fetched ahead, about two epochs; see Shards.ahead."""
        numbers, per_epoch = iter(numbers), len(self.shards) * self.accumulation // self.batch_size + 1
        chunks = iter(lambda: list(islice(numbers, per_epoch)), [])
        lanes = self.batch_size // self.world_size * self.workers_on_node
        in_use = lanes * (WINDOW_BLOCKS + 2) if self.by_blocks else inf
        return self.shards.ahead(map(self.indices, chunks), in_use)

    def read(self, number: int, memory: Tensor | None = None) -> Batch:
        """Return this worker's images of a batch.

        memory: (max_bytes,) uint8 to write them to; None for new memory.
        """
        step, positions = number // self.accumulation, self.positions(number)
        first, indices = step * self.batch_size, self.order.step(step, self.batch_size)
        changes = [self._change(index, position) for position, index in enumerate(indices, start=first)]
        height, width = (max(sides) for sides in zip(*(change.size for change in changes), strict=True))
        image, label = _views(memory, len(positions), height, width)
        for slot, position in enumerate(positions):
            sample = self._samples[indices[position - first]]
            sample_image, sample_label = apply(changes[position - first], sample.image[0], sample.label[0])
            _pad_into(image[slot], sample_image, 0)
            _pad_into(label[slot], sample_label, IGNORE_LABEL)
        return Batch(
            image, label, tuple(self.shards.keys[indices[position - first]] for position in positions)
        )

    def _change(self, index: int, position: int) -> Change:
        height, width = self.shards.sizes[index].tolist()
        return draw(self.transforms, (height, width), self.seed, position)

    @property
    def max_size(self) -> tuple[int, int]:
        """(height, width) of the largest batch: the greatest height and width of images that a step may have."""
        sizes = self.shards.sizes.astype(np.int64)
        if isinstance(self.order, Buckets):
            sizes = self.order.max_sizes
        elif self.batch_size > 1:
            sizes = sizes.max(0)[None]
        # Rounding can make another image the largest
        areas = np.ceil(sizes * self.transforms.scale[1]).prod(1)
        height, width = sizes[areas.argmax()].tolist()
        return largest(self.transforms, (height, width))

    @property
    def max_bytes(self) -> int:
        """The largest number of bytes of a batch of this worker."""
        height, width = self.max_size
        return 4 * height * width * len(self.positions(0))


def _views(memory: Tensor | None, num_images: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return image (N, 3, H, W), channels last as decoders write it, and label (N, H, W), both views of memory."""
    area = num_images * height * width
    if memory is None:
        memory = torch.empty(4 * area, dtype=torch.uint8)
    image = memory[: 3 * area].view(num_images, height, width, 3).permute(0, 3, 1, 2)
    return image, memory[3 * area : 4 * area].view(num_images, height, width)


def _pad_into(whole: Tensor, part: Tensor, padding: int) -> None:
    """Write `part` to the upper left of `whole`, and `padding` to the rest."""
    height, width = part.shape[-2:]
    if part.shape != whole.shape:
        whole[..., height:, :] = padding
        whole[..., :height, width:] = padding
    whole[..., :height, :width].copy_(part)


def loader(
    stream: Stream, numbers: Iterable[int], num_workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Yield the stream's batches of these numbers, in order.

    num_workers: processes that read ahead; 0 for none.
    pin: put batches into page-locked memory, from which a GPU copies asynchronously.
    """
    numbers, planned = tee(numbers) if stream.shards.blocks else (numbers, ())
    with stream.ahead(planned) as advance:
        for batch in _batches(stream, numbers, num_workers, pin):
            yield batch
            advance()


def _batches(stream: Stream, numbers: Iterable[int], num_workers: int, pin: bool) -> Iterator[Batch]:
    if num_workers == 0:
        for number in numbers:
            yield _copy(stream.read(number), pin) if pin else stream.read(number)
        return
    # Loader processes write to memory that they share with this one and reuse. Sharing each batch as torch does takes
    # half as long as decoding it. A batch is copied out before the next is requested, so one slot more than there are
    # batches in flight is enough.
    slots = [_shared_memory(stream.max_bytes) for _ in range(PREFETCH * num_workers + 1)]
    batches = data.DataLoader(
        _IntoSlots(stream, slots),
        sampler=((number, turn % len(slots)) for turn, number in enumerate(numbers)),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        collate_fn=lambda item: item,
        num_workers=num_workers,
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",  # only forked processes share the slots
    )
    for turn, outcome in enumerate(batches):
        if isinstance(outcome, UserError):
            raise outcome
        (height, width), keys = outcome
        yield _copy(Batch(*_views(slots[turn % len(slots)], len(keys), height, width), keys), pin)


def _copy(batch: Batch, pin: bool) -> Batch:
    def copied(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, pin_memory=pin).copy_(tensor)

    return Batch(copied(batch.image), copied(batch.label), batch.keys)


def _shared_memory(num_bytes: int) -> Tensor:
    """Return memory that forked processes share; each page is allocated when it is first used."""
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


class _IntoSlots(data.Dataset[tuple[tuple[int, int], tuple[str, ...]] | UserError]):
    """Reads a batch into a slot; an item is the batch's (height, width) and keys.

    A UserError is returned, because torch would put the loader process's stack into its message.
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
