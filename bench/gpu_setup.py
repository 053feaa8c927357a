"""Shared by the parts of bench.gpu_all: the device, clocks, and training jobs on the packed photos."""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcn import IGNORE_LABEL
from pipeline import config, paths
from pipeline.config import Profile
from pipeline.config.job import Job
from pipeline.config.model import Model
from pipeline.config.training import Net
from pipeline.distributed.rank import Rank
from pipeline.monitoring.meter import STOP
from pipeline.training.prepare import make_job

NUM_CLASSES = 21
Work = Callable[[], object]


class SkippedError(Exception):
    """A part cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Bench:
    """One run of bench.gpu_all.

    device: what is measured.
    is_small: a rehearsal: tiny nets and images.
    scratch: a folder for files that are not kept.
    photos: the project folder that bench.gpu_pack wrote.
    peer: a clone of wkentaro/pytorch-fcn.
    deadline_s: time.monotonic() at the end of the part's time.
    """

    device: torch.device
    is_small: bool
    scratch: Path
    photos: Path | None
    peer: Path | None
    deadline_s: float = math.inf

    @property
    def left_s(self) -> float:
        """Seconds left for the part."""
        return self.deadline_s - time.monotonic()

    @property
    def rank(self) -> Rank:
        return Rank(0, 1, self.device)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images whose speed is measured."""
        return (48, 64) if self.is_small else (375, 500)

    def folder(self, name: str) -> Path:
        """Return a folder of a part's own."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(
    works: Mapping[str, Work], bench: Bench, rounds: int = 7, most_s: float = math.inf
) -> dict[str, float]:
    """Return the seconds that each work takes, the median over rounds in which they take turns.

    rounds: after two to warm up and to compile; one in a rehearsal.
    most_s: no further round starts after so many seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    end_s = time.monotonic() + most_s
    for number in range(2 + (1 if bench.is_small else rounds)):
        if number > 2 and time.monotonic() > end_s:
            break
        for name, work in works.items():
            synchronise(bench.device)
            start = time.perf_counter()
            work()
            synchronise(bench.device)
            if number > 1:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_gib(make_work: Callable[[], Work], device: torch.device) -> float:
    """Return the peak memory on a GPU while a work is made and runs twice."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work = make_work()
    work()
    work()
    return torch.cuda.max_memory_allocated(device) / 2**30


@contextmanager
def tf32(is_used: bool) -> Iterator[None]:
    """Run float32 convolutions and products in TF32, or exactly. torch's own default is TF32 for convolutions alone."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_used
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def drawn_labels(num_images: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (prediction, label), (N, H, W) int64 and uint8: patches of classes with noise; 5% of the label is void."""
    rows, columns = math.ceil(height / 15), math.ceil(width / 20)
    patches = torch.randint(0, NUM_CLASSES, (num_images, rows, columns))
    label = patches.repeat_interleave(15, 1).repeat_interleave(20, 2)[:, :height, :width].clone()
    prediction = torch.where(torch.rand(label.shape) < 0.9, label, 0)
    label[torch.rand(label.shape) < 0.05] = IGNORE_LABEL
    return prediction, label.to(torch.uint8)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute expected value; NaN if there is a NaN."""
    result, expected = result.detach().cpu().double(), expected.detach().cpu().double()
    return ((result - expected).abs().max() / expected.abs().max()).item()


def l2_error(result: Tensor, expected: Tensor) -> float:
    """Return |result - expected| / |expected| in the Euclidean norm."""
    result, expected = result.detach().cpu().double(), expected.detach().cpu().double()
    return ((result - expected).norm() / expected.norm()).item()


class Project(NamedTuple):
    """A project folder of a part's own, with the packed photos' shards."""

    root: Path
    name: str
    profile: Profile

    def job(
        self,
        net: str,
        *,
        model: Model | None = None,
        train: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> Job:
        """Return the job of a net of the profile, for one worker.

        model, train, run, recipe: what differs from the profile's sections.
        """
        profile = self.profile
        lines = {"log_every_s": 1e9, "validate_every": 0}
        changed = Net(**(profile.net(net).model_dump() | dict(recipe or {})))
        sections = {
            "model": model or profile.model,
            "train": profile.train.model_copy(update={"num_workers": 1} | dict(train or {})),
            "run": profile.run.model_copy(update=lines | dict(run or {})),
            "nets": profile.nets.model_copy(update={net: changed}),
        }
        made = make_job(self.name, profile.model_copy(update=sections), net, self.root)
        made.folder.mkdir(parents=True, exist_ok=True)
        return made


def project(bench: Bench, folder: str, *, has_backbone: bool = True) -> Project:
    """Return a new project whose shards and backbone are those of the packed photos.

    has_backbone: False leaves the backbone to the caller.
    """
    if bench.photos is None:
        raise SkippedError("no photos; give --photos, a folder that bench.gpu_pack wrote")
    root, packed = bench.folder(folder).absolute(), bench.photos.absolute()
    name, profile = config.load(packed)
    (root / "data").symlink_to(packed / "data")
    backbone = paths.model(name, "backbone")
    (root / backbone).parent.mkdir(parents=True)
    if has_backbone:
        (root / backbone).symlink_to(packed / backbone)
    return Project(root, name, profile)


@contextmanager
def stopped_after(job: Job, seconds: float) -> Iterator[None]:
    """Stop the job that the block trains after so many seconds; it then writes a checkpoint and ends."""
    timer = threading.Timer(max(1.0, seconds), (job.folder / STOP).touch)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
