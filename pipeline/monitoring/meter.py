"""What training looks like from outside: a line every few seconds, and curves at every so many steps."""

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.config.job import Job
from pipeline.curves import append_point
from pipeline.distributed.rank import Place
from pipeline.errors import UserError
from pipeline.shards.dataset import Batch

CURVES = "curves.jsonl"
STOP = "stop"  # a file of this name in a run's folder asks its workers to write a checkpoint and end


@dataclass
class Stretch:
    """Steps since something was last shown: their loss as a sum and what it is summed over, and how long they took."""

    summed: float = 0.0
    counted: float = 0.0
    steps: int = 0
    waited_s: float = 0.0
    since: float = field(default_factory=lambda: time.perf_counter())  # whatever it is by then: tests set it

    def add(self, losses: Sequence[Sequence[float]], waited_s: float) -> None:
        self.summed += sum(summed for summed, _ in losses)
        self.counted += sum(counted for _, counted in losses)
        self.steps += len(losses)
        self.waited_s += waited_s

    @property
    def loss(self) -> float:
        return self.summed / max(self.counted, 1)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.since


class Meter:
    """Every worker has one, and `look`s at the same steps; the first writes.

    Between two looks no worker waits for another but in the exchange of gradients. The steps to look at are every
    log_every-th and checkpoint_every-th, and those the first worker guesses to be log_every_s after the last line.
    done: steps done before.   unshown: what a meter that was stopped there had of that name.
    keys_at: the names of the images of a step.
    """

    def __init__(
        self, job: Job, place: Place, done: int, unshown: Sequence[float], keys_at: Callable[[int], list[str]]
    ):
        self.job, self.place, self.keys_at = job, place, keys_at
        self.line, self.point = Stretch(), Stretch(unshown[0], unshown[1])
        self._losses: list[Tensor] = []  # a step each since the last look: loss summed, what over
        self._looked_at = done
        self._next_look = done + 1
        self._waited_s = 0.0
        self._lr = 0.0

    @property
    def unshown(self) -> list[float]:
        """The loss since the curves' last point, as Stretch has it: so that a resumed run's curve is the same."""
        return [self.point.summed, self.point.counted]

    def waiting(self, batches: Iterator[Batch], number: int) -> list[Batch]:
        """The next batches, with the time it took to get them kept."""
        start = time.perf_counter()
        taken = [next(batches) for _ in range(number)]
        self._waited_s += time.perf_counter() - start
        return taken

    def add(self, counted: Tensor, lr: float) -> None:
        """After each step. counted: what step.gradients gave."""
        self._losses.append(counted)
        self._lr = lr

    def is_due(self, done: int) -> bool:
        """Whether the workers look up after this step."""
        job = self.job
        every = (job.log_every, job.checkpoint_every, job.validate_every or job.iterations)
        return done in (self._next_look, job.iterations) or any(done % number == 0 for number in every)

    def look(self, done: int) -> bool:
        """Whether somebody asks to stop. UserError, on every worker, if the loss of a step is no number any more."""
        losses = self.place.total(torch.stack(self._losses)).tolist()
        for step, (summed, _) in enumerate(losses, start=self._looked_at):
            if not math.isfinite(summed):
                raise UserError(
                    f"{self.job.net}: the loss is {summed} in step {step + 1}, images "
                    f"{', '.join(self.keys_at(step))}; lower nets.{self.job.net}.lr (now {self.job.lr}) or look at "
                    f"these images; the last good checkpoint is kept in {self.job.folder}"
                )
        for stretch in (self.line, self.point):
            stretch.add(losses, self._waited_s)
        self._losses, self._looked_at, self._waited_s = [], done, 0.0
        is_asked_to_stop = self.place.is_first and (self.job.folder / STOP).exists()
        self._next_look = self.place.agree(0 if is_asked_to_stop else done + self._steps_to_next_line())
        return self._next_look == 0

    def show(self, done: int, scores: Mapping[str, float]) -> None:
        """Writes the line, if it is time, and the curves' point, if it is at this step. scores: of validation."""
        if not self.place.is_first:
            return
        is_last = done == self.job.iterations
        if is_last or self.line.elapsed_s >= self.job.log_every_s:
            print(self._line(done), flush=True)
            self.line = Stretch()
        if is_last or scores or done % self.job.log_every == 0:
            values = {
                "loss": self.point.loss,
                "lr": self._lr,
                "images_per_s": self.point.steps * self.job.batch_size / self.point.elapsed_s,
                "data_wait": self.point.waited_s / self.point.elapsed_s,
                "memory_gb": peak_memory_gb(self.place.device),
            }
            append_point(self.job.folder / CURVES, done, values | dict(scores))
            self.point = Stretch()

    def _line(self, done: int) -> str:
        elapsed, steps = self.line.elapsed_s, self.line.steps
        return (
            f"{self.job.net}  {done}/{self.job.iterations}  loss {self.line.loss:.4f}  "
            f"{steps * self.job.batch_size / elapsed:.1f} images/s  {self.line.waited_s / elapsed:.0%} data wait  "
            f"{_clock((self.job.iterations - done) * elapsed / steps)} left"
        )

    def _steps_to_next_line(self) -> int:
        elapsed = self.line.elapsed_s
        left = self.job.log_every_s - elapsed
        return max(1, math.ceil((left if left > 0 else self.job.log_every_s) * self.line.steps / elapsed))


def peak_memory_gb(device: torch.device) -> float:
    """The most this worker has had so far, of the GPU's memory or else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux gives KiB


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
