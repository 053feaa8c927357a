"""Progress of training: a line every few seconds, and points of the curves at fixed steps."""

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.cache.client import Blocks
from pipeline.config.job import Job
from pipeline.curves import append_point
from pipeline.distributed.rank import Rank
from pipeline.errors import UserError
from pipeline.shards.dataset import Batch

CURVES = "curves.jsonl"
STOP = "stop"  # a file of this name in a run's folder makes its workers write a checkpoint and end


@dataclass
class Window:
    """Sums over the steps since a line or a point was last written.

    loss_sum, num_terms: the loss as a sum, and the number of its terms.
    waited_s: seconds that the loop waited for data.
    num_reads, num_misses: samples that were read from a store's cache, and those whose block it had to fetch first.
    start_s: time.perf_counter() at the first step.
    """

    loss_sum: float = 0.0
    num_terms: float = 0.0
    num_steps: int = 0
    waited_s: float = 0.0
    num_reads: int = 0
    num_misses: int = 0
    start_s: float = field(default_factory=lambda: time.perf_counter())

    def add(
        self, losses: Sequence[Sequence[float]], waited_s: float, num_reads: int, num_misses: int
    ) -> None:
        self.loss_sum += sum(loss_sum for loss_sum, _ in losses)
        self.num_terms += sum(num_terms for _, num_terms in losses)
        self.num_steps += len(losses)
        self.waited_s += waited_s
        self.num_reads += num_reads
        self.num_misses += num_misses

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.num_terms, 1)

    @property
    def hits(self) -> dict[str, float]:
        """{"cache_hits": share} if samples were read from a store's cache, else {}."""
        return {"cache_hits": 1 - self.num_misses / self.num_reads} if self.num_reads else {}

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.start_s


class Meter:
    """Measures a worker's loop. Every worker has one and collects at the same steps; rank 0 writes.

    Between two collections the meter uses no collective and never synchronises the device.
    Collections happen every run.log_every and run.checkpoint_every steps, and when rank 0 expects run.log_every_s to
    have passed since the last line.

    done: steps done before; 0 unless the run is resumed.
    unshown: `Meter.unshown` of the run that is resumed.
    keys_at: returns the keys of the images of a step.
    blocks: the training shards' blocks in a store's cache; None for local shards.
    """

    def __init__(
        self,
        job: Job,
        rank: Rank,
        done: int,
        unshown: Sequence[float],
        keys_at: Callable[[int], list[str]],
        blocks: Blocks | None = None,
    ):
        self._blocks, self._counts = blocks, (0, 0)
        self.job, self.rank, self.keys_at = job, rank, keys_at
        self.line, self.point = Window(), Window(unshown[0], unshown[1])
        self._losses: list[
            Tensor
        ] = []  # of the steps since the last collection, as step.backward returns them
        self._collected = done
        self._next_collection = done + 1
        self._waited_s = 0.0
        self._lr = 0.0

    @property
    def unshown(self) -> list[float]:
        """Loss and terms since the curve's last point. A checkpoint keeps them, so a resumed curve is the same."""
        return [self.point.loss_sum, self.point.num_terms]

    @property
    def has_steps(self) -> bool:
        """Whether steps were added since the last collection."""
        return bool(self._losses)

    def take(self, batches: Iterator[Batch], number: int) -> list[Batch]:
        """Return the next batches, and measure the time it took to get them."""
        start = time.perf_counter()
        taken = [next(batches) for _ in range(number)]
        self._waited_s += time.perf_counter() - start
        return taken

    def add(self, loss: Tensor, lr: float) -> None:
        """Add a step: the loss that step.backward returned, and the learning rate."""
        self._losses.append(loss)
        self._lr = lr

    def is_due(self, done: int) -> bool:
        """Return whether the workers collect after this step."""
        run, iterations = self.job.run, self.job.recipe.iterations
        intervals = (run.log_every, run.checkpoint_every, self.job.validate_every or iterations)
        return done in (self._next_collection, iterations, self.job.shared_steps) or any(
            done % every == 0 for every in intervals
        )

    def collect(self, done: int) -> bool:
        """Sum the losses over all workers; return whether the run's folder has a STOP file.

        Raises UserError, on every worker, if the loss of a step is NaN or infinite.
        """
        losses = self.rank.all_reduce(torch.stack(self._losses)).tolist()
        for step, (loss_sum, _) in enumerate(losses, start=self._collected):
            if not math.isfinite(loss_sum):
                raise UserError(
                    f"{self.job.title}: the loss is {loss_sum} in step {step + 1}, images "
                    f"{', '.join(self.keys_at(step))}; lower nets.{self.job.net}.lr (now {self.job.recipe.lr}) or "
                    f"look at these images; the last good checkpoint is kept in {self.job.folder}"
                )
        reads, misses = self._blocks.counts if self._blocks else (0, 0)
        for window in (self.line, self.point):
            window.add(losses, self._waited_s, reads - self._counts[0], misses - self._counts[1])
        self._counts = reads, misses
        self._losses, self._collected, self._waited_s = [], done, 0.0
        is_stopped = self.rank.is_first and (self.job.folder / STOP).exists()
        self._next_collection = self.rank.agree(0 if is_stopped else done + self._steps_to_next_line())
        return self._next_collection == 0

    def show(self, done: int, scores: Mapping[str, float]) -> None:
        """Print the line and append the point that are due after this step. scores: of validation, may be empty."""
        if not self.rank.is_first:
            return
        is_last = done == self.job.recipe.iterations
        if is_last or self.line.elapsed_s >= self.job.run.log_every_s:
            print(self._format_line(done), flush=True)
            self.line = Window()
        if is_last or scores or done % self.job.run.log_every == 0:
            values = {
                "loss": self.point.loss,
                "lr": self._lr,
                "images_per_s": self.point.num_steps * self.job.train.batch_size / self.point.elapsed_s,
                "data_wait": self.point.waited_s / self.point.elapsed_s,
                "memory_gb": peak_memory_gb(self.rank.device),
            }
            append_point(self.job.folder / CURVES, done, values | self.point.hits | dict(scores))
            self.point = Window()

    def _format_line(self, done: int) -> str:
        elapsed_s, num_steps = self.line.elapsed_s, self.line.num_steps
        iterations = self.job.recipe.iterations
        return (
            f"{self.job.title}  {done}/{iterations}  loss {self.line.loss:.4f}  "
            f"{num_steps * self.job.train.batch_size / elapsed_s:.1f} images/s  "
            f"{self.line.waited_s / elapsed_s:.0%} data wait  "
            + "".join(f"{share:.0%} cache hits  " for share in self.line.hits.values())
            + f"{_clock((iterations - done) * elapsed_s / num_steps)} left"
        )

    def _steps_to_next_line(self) -> int:
        interval_s, elapsed_s = self.job.run.log_every_s, self.line.elapsed_s
        left_s = interval_s - elapsed_s if elapsed_s < interval_s else interval_s
        return max(1, math.ceil(left_s * self.line.num_steps / elapsed_s))


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of this worker in gigabytes: the GPU's, or else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux: KiB


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
