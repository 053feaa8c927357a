"""Which samples a step takes: arithmetic on (samples, seed, step, batch), no state to lose and nothing to read first.

Samples form one endless sequence of positions. Step s takes positions s * batch_size onwards, however many workers
share them; so the sequence does not depend on their number, and any step can be the first.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

KEPT_ROUNDS = 2  # a step may reach over the end of a round into the next; 8 MB each for a million samples
BUCKET_TURNS = (
    1  # sets the draws of whose turn it is apart from those of samples; never 0, which numpy ignores
)


@dataclass(frozen=True)
class Order:
    """The endless sequence of sample indices.

    sampling: "epochs" visits every sample once before any twice, in an order of its own each epoch;
    "replacement" draws each uniformly from all, as the reference does.
    """

    num_samples: int
    seed: int
    sampling: str = "epochs"
    _rounds: dict[int, NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        assert self.num_samples > 0
        assert self.sampling in ("epochs", "replacement"), self.sampling

    def __getitem__(self, position: int) -> int:
        """The index of the sample at a position >= 0."""
        number, place = divmod(position, self.num_samples)
        return int(self._round(number)[place])

    def step(self, number: int, batch_size: int) -> list[int]:
        """The indices of the batch_size samples that all workers together take at a step."""
        start, end = number * batch_size, (number + 1) * batch_size
        indices: list[int] = []
        while start < end:  # once, but where the step reaches over the end of a round
            turn, place = divmod(start, self.num_samples)
            indices += self._round(turn)[place : place + end - start].tolist()
            start = number * batch_size + len(indices)
        return indices

    def _round(self, number: int) -> NDArray[np.int64]:
        """The num_samples indices that follow position number * num_samples."""
        if number not in self._rounds:
            while len(self._rounds) >= KEPT_ROUNDS:
                del self._rounds[min(self._rounds)]
            rng = np.random.Generator(np.random.PCG64([self.seed, number]))
            self._rounds[number] = (
                rng.permutation(self.num_samples)
                if self.sampling == "epochs"
                else rng.integers(self.num_samples, size=self.num_samples)
            )
        return self._rounds[number]


@dataclass(frozen=True)
class Buckets:
    """An order whose steps take images of one size, so that none is padded; every sample comes as often as any other.

    Sizes that fewer than batch_size images have share one bucket, the only one whose batches are padded.
    By "epochs" each bucket runs through its samples, each once before any twice; in epoch e a bucket of n samples gets
    the steps for which its n * (e + 1) samples so far suffice, and what is left over waits for the next epoch.
    With "replacement" a uniform draw from all samples chooses a step's bucket, and draws from that bucket its samples.
    sizes: (num_samples, 2) height and width.
    """

    sizes: NDArray[np.integer]
    batch_size: int
    seed: int
    sampling: str = "epochs"

    @cached_property
    def bucket_of(self) -> NDArray[np.int64]:
        """(num_samples,) each sample's bucket, 0 .. num_buckets - 1."""
        height, width = self.sizes.astype(np.int64).T
        _, kind, count = np.unique(height << 32 | width, return_inverse=True, return_counts=True)
        shared = count < self.batch_size
        number = np.where(shared, 0, np.cumsum(~shared) - 1 + shared.any())
        return number[kind]

    @cached_property
    def _members(self) -> list[NDArray[np.int64]]:
        """The indices in each bucket, ascending."""
        by_bucket = np.argsort(self.bucket_of, kind="stable")
        return np.split(by_bucket, np.cumsum(self._counts)[:-1])

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.bincount(self.bucket_of)

    @cached_property
    def _orders(self) -> list[Order]:
        return [Order(int(count), self.seed, self.sampling) for count in self._counts]

    @cached_property
    def _leaders(self) -> Order:
        return Order(len(self.sizes), self.seed, self.sampling)

    def step(self, number: int, batch_size: int) -> list[int]:
        """The indices of the batch_size samples that all workers together take at a step."""
        assert batch_size == self.batch_size, (batch_size, self.batch_size)
        if self.sampling == "replacement":
            bucket, turn = int(self.bucket_of[self._leaders[number]]), number
        else:
            bucket, turn = self._turn(number)
        return self._members[bucket][self._orders[bucket].step(turn, batch_size)].tolist()

    def _turn(self, number: int) -> tuple[int, int]:
        """(the bucket whose turn it is at a step, how many turns it has had before)."""
        epoch = number * self.batch_size // len(self.sizes)  # or a little later, for what was left over
        while self._turns_before(epoch + 1).sum() <= number:
            epoch += 1
        before = self._turns_before(epoch)
        turns = np.repeat(np.arange(len(before)), self._turns_before(epoch + 1) - before)
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch, BUCKET_TURNS]))
        turns, place = rng.permutation(turns), number - before.sum()
        bucket = turns[place]
        return int(bucket), int(before[bucket] + (turns[:place] == bucket).sum())

    def _turns_before(self, epoch: int) -> NDArray[np.int64]:
        """How many steps each bucket has had before an epoch."""
        return epoch * self._counts // self.batch_size
