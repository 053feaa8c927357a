"""Trial steps: the time and memory that real steps of the real nets take on a few of the user's photos."""

import gc
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from fcn.model import FCN
from pipeline.cache.client import NodeCache
from pipeline.config import STRIDE, Profile
from pipeline.config.job import Job
from pipeline.datasets.lists import read_bytes
from pipeline.distributed.batch_norm import set_training
from pipeline.distributed.precision import agreed
from pipeline.distributed.rank import SINGLE, Rank
from pipeline.monitoring.meter import peak_memory_gb
from pipeline.shards.dataset import Batch
from pipeline.shards.labels import decode_label
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from pipeline.training.loop import make_optimizer, make_stream, set_learning_rate
from pipeline.training.preflight import check_shapes, is_out_of_memory
from pipeline.training.step import backward, class_weights

NUM_PHOTOS = 32  # of the training photos, evenly chosen
MAX_S = 20.0  # a trial ends after the first step beyond


class Trial(NamedTuple):
    """The measurement of one net.

    step_s: seconds of a step with its photos' decoding, the median.
    memory: bytes of all workers' processes on a CPU, or of a GPU.
    """

    step_s: float
    memory: float


def write_photos(pairs: Sequence[tuple[Path, Path]], classes: Sequence[str], dest: Path) -> None:
    """Write shards of NUM_PHOTOS of the training photos; all are checked as `dvc repro` checks them."""
    count = min(len(pairs), NUM_PHOTOS)
    chosen = {f"{i:02}": pairs[i * len(pairs) // count] for i in range(count)}

    def load(key: str) -> Sample:
        photo, mask = chosen[key]
        png = read_bytes(mask, str(mask))
        label = decode_label(png, str(mask))
        return Sample.checked(
            key, read_bytes(photo, str(photo)), label, len(classes), (str(photo), str(mask)), png
        )

    write_shards(list(chosen), load, dest, split="train", classes=classes, samples_per_shard=count, seed=0)


def measure(
    profile: Profile, nets: Sequence[str], shards: Path, num_steps: int, limit: float
) -> list[Trial] | None:
    """Return a trial of each net, or None if a step needs more memory than there is.

    CPU workers are measured at the same time, each in its own process, as in training. Of several GPUs one is
    measured. What workers send to each other is not.

    nets: names; the one that needs most memory first.
    shards: those of `write_photos`.
    num_steps: timed ones, fewer if they take longer than MAX_S; one more is taken before.
    limit: bytes for all workers, or of each GPU.

    Raises UserError if a net cannot compute a step.
    """
    train = profile.train
    num_processes = 1 if train.use_gpu else train.num_workers
    share = limit / num_processes
    # A job of one worker's share of the batch
    batch_size = train.batch_size // train.num_workers
    one = train.model_copy(update={"num_workers": 1, "batch_size": batch_size})
    trials = []
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        for net in nets:
            model = profile.model.arguments() | {
                "num_classes": len(profile.data.classes),
                "stride": STRIDE[net],
            }
            job = Job(
                identity="trial",
                net=net,
                model=model,
                classes=tuple(profile.data.classes),
                train=one,
                run=profile.run,
                recipe=profile.net(net),
                parent=Path(),
                shards=shards,
                validation=shards,
                folder=shards,
                lineage={},
            )
            check_shapes(job, open_shards(shards).sizes)
            try:
                results = list(
                    pool.map(
                        _steps, [job] * num_processes, [num_steps] * num_processes, [share] * num_processes
                    )
                )
            except BrokenProcessPool:  # the system killed a process: it was out of memory
                return None
            if any(result is None for result in results):
                return None
            measured = [result for result in results if result is not None]
            memory = sum(result.memory for result in measured)
            if memory > limit:
                return None
            trials.append(Trial(max(result.step_s for result in measured), memory))
    return trials


def _steps(job: Job, num_steps: int, limit: float) -> Trial | None:
    """Train some steps in this process; None if memory runs out in the first."""
    rank = Rank(0, 1, torch.device("cuda", 0)) if job.train.use_gpu else SINGLE
    job = replace(job, train=job.train.model_copy(update={"precision": agreed(job.train.precision, rank)}))
    torch.set_num_threads(job.run.cpus_per_worker)
    torch.set_flush_denormal(True)
    gc.collect()
    if job.train.use_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    shards = open_shards(job.shards, node_cache=NodeCache(**job.run.cache.model_dump()))
    stream = make_stream(job, shards, rank)
    class_weight = class_weights(job, shards.class_pixels, rank.device)

    def take(step: int, batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = backward(job, model, [batch], step, rank, class_weight)
        set_learning_rate(job, optimizer, step)
        optimizer.step()
        loss.tolist()  # waits for a GPU

    batch = stream.read(0)
    try:
        with _limited(float("inf") if job.train.use_gpu else limit):
            model = FCN(**job.model).to(rank.device)
            set_training(model, job.train.batch_norm)
            optimizer = make_optimizer(job, model)
            take(0, batch)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise
    seconds: list[float] = []
    while len(seconds) < num_steps and sum(seconds) < MAX_S:
        start, step = time.perf_counter(), len(seconds) + 1
        take(step, stream.read(step))
        seconds.append(time.perf_counter() - start)
    return Trial(statistics.median(seconds), peak_memory_gb(rank.device) * 1e9)


@contextmanager
def _limited(limit: float):
    """Let allocations beyond the limit fail in this process, before the system ends others."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if limit < float("inf"):
        ceiling = int(limit) if before[1] == resource.RLIM_INFINITY else min(int(limit), before[1])
        resource.setrlimit(resource.RLIMIT_DATA, (ceiling, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
