"""Which samples a step takes: arithmetic on (number of samples, seed, step, batch size), without state.

Samples form one endless sequence of positions. A round is num_samples positions: one epoch, or as many random draws.
Step s takes positions s * batch_size onwards, however many workers share them. So the sequence does not depend on the
number of workers, and any step can be the first.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

KEPT_ROUNDS = 2  # a step may cross the end of a round; 8 MB each for a million samples
# Make these draws differ from those of samples and of transforms; not 0, which numpy's seeding ignores
BUCKET_DRAW_KIND, BLOCK_DRAW_KIND = 1, 3
WINDOW_BLOCKS = 2  # a lane has twice as many blocks in use, or a little more


@dataclass(frozen=True)
class Order:
    """The endless sequence of sample indices.

    num_samples: at least 1.
    seed: of the random draws.
    sampling: "epochs" visits every sample once before any twice, in a new random order each epoch; "replacement"
        draws each sample uniformly from all, as the reference does.
    """

    num_samples: int
    seed: int
    sampling: str = "epochs"
    _rounds: dict[int, NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        assert self.num_samples > 0
        assert self.sampling in ("epochs", "replacement"), self.sampling

    def __getitem__(self, position: int) -> int:
        """Return the index of the sample at a position >= 0."""
        number, offset = divmod(position, self.num_samples)
        return int(self._round(number)[offset])

    def step(self, number: int, batch_size: int) -> list[int]:
        """Return the indices of the batch_size samples that all workers together take at a step."""
        start, end = number * batch_size, (number + 1) * batch_size
        indices: list[int] = []
        while start < end:  # runs once, except where the step crosses the end of a round
            round_number, offset = divmod(start, self.num_samples)
            indices += self._round(round_number)[offset : offset + end - start].tolist()
            start = number * batch_size + len(indices)
        return indices

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the samples at positions, in an array of the same shape."""
        numbers, offsets = np.divmod(positions, self.num_samples)
        indices = np.empty_like(positions)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            indices[here] = self._round(number)[offsets[here]]
        return indices

    def _round(self, number: int) -> NDArray[np.int64]:
        """Return the num_samples indices that start at position number * num_samples."""
        if number not in self._rounds:
            while len(self._rounds) >= KEPT_ROUNDS:
                del self._rounds[min(self._rounds)]
            self._rounds[number] = self._drawn(number)
        return self._rounds[number]

    def _drawn(self, number: int) -> NDArray[np.int64]:
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        if self.sampling == "epochs":
            return rng.permutation(self.num_samples)
        return rng.integers(self.num_samples, size=self.num_samples)


@dataclass(frozen=True)
class BlockOrder(Order):
    """An order for shards that are read by blocks: each worker reads its own blocks, and each of them once an epoch.

    In each epoch the shuffled blocks are laid end to end and cut into as many lanes as a step has images. Image j of a
    step comes from lane j (rotated where epochs end within a step). So a lane belongs to one worker, whatever their
    number. In a lane, samples are shuffled within a window that slides over WINDOW_BLOCKS blocks.

    first_sample: (B + 1,) block b holds the samples first_sample[b] .. first_sample[b + 1] - 1.
    num_lanes: images of a step.
    """

    first_sample: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(1, np.int64), compare=False, repr=False
    )
    num_lanes: int = 1

    def _drawn(self, number: int) -> NDArray[np.int64]:
        rng = np.random.Generator(np.random.PCG64([self.seed, number, BLOCK_DRAW_KIND]))
        blocks = rng.permutation(len(self.first_sample) - 1)
        sizes = np.diff(self.first_sample)[blocks]
        samples = np.repeat(self.first_sample[blocks] - (np.cumsum(sizes) - sizes), sizes)
        samples += np.arange(self.num_samples)
        lanes = np.arange(self.num_lanes)
        lengths = (self.num_samples - lanes + self.num_lanes - 1) // self.num_lanes
        lane = np.repeat(lanes, lengths)
        place = np.arange(self.num_samples) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        window = WINDOW_BLOCKS * self.num_samples / len(blocks)
        shuffled = samples[np.lexsort((place + window * rng.random(self.num_samples), lane))]
        order = np.empty_like(samples)
        order[place * self.num_lanes + lane] = shuffled
        return order


@dataclass(frozen=True)
class Buckets:
    """An order whose steps take images of one size, so that no image is padded.

    Every sample is taken equally often. Sizes with fewer than batch_size images share one bucket, the only one with
    padded batches. By "epochs" a bucket visits each of its samples once before any twice. A bucket of n samples has
    had n * (e + 1) // batch_size steps at the end of epoch e; its other samples wait for the next epoch. With
    "replacement" a uniform draw from all samples chooses a step's bucket; draws from that bucket choose its samples.

    sizes: (num_samples, 2) height and width.
    """

    sizes: NDArray[np.integer]
    batch_size: int
    seed: int
    sampling: str = "epochs"
    _epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @cached_property
    def bucket_of(self) -> NDArray[np.int64]:
        """(num_samples,) the bucket of each sample, 0 .. num_buckets - 1."""
        height, width = self.sizes.astype(np.int64).T
        _, kind, count = np.unique(height << 32 | width, return_inverse=True, return_counts=True)
        is_rare = count < self.batch_size
        number = np.where(is_rare, 0, np.cumsum(~is_rare) - 1 + is_rare.any())
        return number[kind]

    @cached_property
    def _members(self) -> list[NDArray[np.int64]]:
        """The sample indices in each bucket, ascending."""
        by_bucket = np.argsort(self.bucket_of, kind="stable")
        return np.split(by_bucket, np.cumsum(self._counts)[:-1])

    @property
    def max_sizes(self) -> NDArray[np.int64]:
        """(num_buckets, 2) the greatest height and width in each bucket."""
        return np.array([self.sizes[members].max(0) for members in self._members], np.int64)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.bincount(self.bucket_of)

    @cached_property
    def _orders(self) -> list[Order]:
        return [Order(int(count), self.seed, self.sampling) for count in self._counts]

    @cached_property
    def _bucket_draws(self) -> Order:
        return Order(len(self.sizes), self.seed, self.sampling)

    def step(self, number: int, batch_size: int) -> list[int]:
        """Return the indices of the batch_size samples that all workers together take at a step."""
        assert batch_size == self.batch_size, (batch_size, self.batch_size)
        if self.sampling == "replacement":
            bucket, bucket_step = int(self.bucket_of[self._bucket_draws[number]]), number
        else:
            bucket, bucket_step = self._bucket_at(number)
        return self._members[bucket][self._orders[bucket].step(bucket_step, batch_size)].tolist()

    def _bucket_at(self, number: int) -> tuple[int, int]:
        """Return (the bucket of a step, the number of steps that bucket had before)."""
        epoch = number * self.batch_size // len(self.sizes)  # or a later one, because some samples wait
        while self._steps_before(epoch + 1).sum() <= number:
            epoch += 1
        buckets, steps = self._epoch(epoch)
        offset = number - self._steps_before(epoch).sum()
        return int(buckets[offset]), int(steps[offset])

    def _epoch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the bucket of each step of an epoch, and the number of steps that bucket had before."""
        if number not in self._epochs:
            while len(self._epochs) >= KEPT_ROUNDS:
                del self._epochs[min(self._epochs)]
            before = self._steps_before(number)
            num_steps = self._steps_before(number + 1) - before
            rng = np.random.Generator(np.random.PCG64([self.seed, number, BUCKET_DRAW_KIND]))
            buckets = rng.permutation(np.repeat(np.arange(len(before)), num_steps))
            first = np.cumsum(num_steps) - num_steps
            steps = np.empty_like(buckets)
            steps[np.argsort(buckets, kind="stable")] = np.arange(len(buckets)) + np.repeat(
                before - first, num_steps
            )
            self._epochs[number] = buckets, steps
        return self._epochs[number]

    def _steps_before(self, epoch: int) -> NDArray[np.int64]:
        """Return how many steps each bucket has had before an epoch."""
        return epoch * self._counts // self.batch_size
