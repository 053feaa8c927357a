"""The training loop: what each worker runs, read from top to bottom."""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from fcn.loss import balancing_weights, count_valid, mean_pixel_cross_entropy, pixel_cross_entropy, sampled
from fcn.model import FCN
from fcn.optim import parameter_groups
from fcn.surgery import transplant
from pipeline import checkpoint, spool
from pipeline.errors import CheckpointError, UserError
from pipeline.exchange import exchanging
from pipeline.place import Place
from pipeline.shards import Shards, open_shards
from pipeline.stream import Batch, Order, loader

FINAL = "final.pt"
CURVES = "curves.jsonl"
POLY_POWER = 0.9  # Chen et al., DeepLab


@dataclass(frozen=True)
class Job:
    """All a worker has to know; plain values and absolute paths, so that it can run anywhere.

    identity: the run's name, which changes with anything that changes its result.   model: FCN's arguments.
    parent: the file it starts from, a backbone for the first net of a chain, else the coarser net.
    shards: of the training split.   folder: of working checkpoints, curves and the final model, shared by all workers.
    lineage: what the final model says of where it comes from.   The rest: see profiles and config.Train.
    """

    identity: str
    net: str
    model: dict[str, Any]
    classes: tuple[str, ...]
    parent: Path
    shards: Path
    folder: Path
    lineage: dict[str, Any]
    iterations: int
    lr: float
    batch_size: int
    loss: str
    optimizer: str
    momentum: float
    weight_decay: float
    schedule: str
    sampling: str
    precision: str
    class_balancing: bool
    sample_pixels: float
    exchange: dict[str, Any]
    seed: int
    loader_workers: int
    log_every: int
    checkpoint_every: int


def train_worker(job: Job, place: Place) -> None:
    """Trains from the newest checkpoint, or from the parent, to the last iteration; the first worker writes files."""
    torch.set_flush_denormal(True)
    shards = open_shards(job.shards)
    model = start_model(job).to(place.device)
    optimizer = make_optimizer(job, model)
    start = resume(job, model, optimizer, place)
    trained = exchanging(model, place, start=start, **job.exchange)
    order = Order(len(shards), job.seed, job.sampling)
    batches = order.batches(job.batch_size, range(start, job.iterations), place.rank, place.world)
    class_weight = balancing_weights(shards.class_pixels).to(place.device) if job.class_balancing else None
    meter = Meter(job, place, start, lambda step: step_keys(job, shards, order, step))
    trained.train()
    for step, batch in enumerate(
        loader(shards, batches, job.loader_workers, pin=place.device.type == "cuda"), start=start
    ):
        # The random state of dropout is a function of the step, so a resumed run needs none of it saved
        torch.manual_seed(_step_seed(job.seed, step, place.rank))
        lr = learning_rate(job, step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        loss, counted = step_loss(job, trained, batch, place, class_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meter.add(counted, lr)
        done = step + 1
        is_to_save = done % job.checkpoint_every == 0
        if done % job.log_every == 0 or is_to_save or done == job.iterations:
            meter.log(done)
        if is_to_save or done == job.iterations:
            refuse_broken(job, model, done)
        if is_to_save and place.is_first:
            save_step(job, done, model, optimizer)
    if place.is_first:
        save_final(job, model)
    if place.world > 1:
        place.agree(0)  # no worker leaves before the file is there


def start_model(job: Job) -> FCN:
    """The net as it is before its first step: parameters of its parent, new layers as their kind begins."""
    torch.manual_seed(job.seed)
    model = FCN(**job.model)
    try:
        if model.stride == 32 or model.at_once:
            content, _ = checkpoint.load(job.parent, "backbone")
            model.backbone.load_state_dict(content["state_dict"])
        else:
            content, _ = checkpoint.load(job.parent, "model")
            transplant(model, content["state_dict"])
    except (ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"{job.parent} does not fit {job.net}: {shorten(str(error), 400)}") from error
    return model


def make_optimizer(job: Job, model: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(model, job.lr, job.weight_decay)
    if job.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=job.momentum)


def learning_rate(job: Job, step: int) -> float:
    """The rate of weights at a step, 0 <= step < iterations; biases have their factor on top."""
    return job.lr * (1 - step / job.iterations) ** POLY_POWER if job.schedule == "poly" else job.lr


def step_loss(
    job: Job, model: nn.Module, batch: Batch, place: Place, class_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(loss, [cross entropy summed over this worker's pixels, number of those pixels]).

    The mean of the workers' gradients is that of the whole batch: for "mean", every worker divides by the mean number
    of valid pixels a worker has, however unevenly void is spread.
    """
    image = batch.image.to(place.device, non_blocking=True)
    label = batch.label.to(place.device, non_blocking=True).long()
    if job.sample_pixels < 1:
        label = sampled(label, job.sample_pixels)
    with autocast(job.precision, place.device):
        score = model(image)
    num_valid = count_valid(label)
    if job.loss == "sum":
        loss, share = pixel_cross_entropy(score, label, class_weight), torch.tensor(len(label))
    else:
        share = place.total(num_valid) / place.world
        loss = mean_pixel_cross_entropy(score, label, share, class_weight)
    return loss, torch.stack([loss.detach().double() * share, num_valid.double()])


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def resume(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, place: Place) -> int:
    """Loads the newest checkpoint the first worker found good; returns the number of steps already done."""
    content = checkpoint.latest_step(job.folder, job.identity) if place.is_first else None
    step = place.agree(content["step"] if content else 0)
    if step == 0:
        return 0
    if content is None:
        content = checkpoint.load_step(job.folder, step)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if place.is_first:
        print(f"{job.net}  going on from step {step}", flush=True)
    return step


def refuse_broken(job: Job, model: nn.Module, done: int) -> None:
    """UserError if a weight is no number any more: the loss shows it only one step later, when it would be on disk."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{job.net}: {name} is not finite after step {done}; lower nets.{job.net}.lr (now {job.lr}); "
                f"the last good checkpoint is kept in {job.folder}"
            )


def step_keys(job: Job, shards: Shards, order: Order, step: int) -> list[str]:
    """The names of the images that all workers together take at a step."""
    return [shards.keys[i] for batch in order.batches(job.batch_size, range(step, step + 1)) for i in batch]


def save_step(job: Job, done: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    checkpoint.save_step(
        job.folder,
        done,
        {
            "identity": job.identity,
            "step": done,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
    )


def save_final(job: Job, model: nn.Module) -> None:
    content = {
        "model": job.model,
        "classes": list(job.classes),
        "lineage": job.lineage,
        "state_dict": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
    }
    checkpoint.save(job.folder / FINAL, "model", content)


@dataclass
class Meter:
    """Keeps what happened since the last line, and writes the line: to the terminal and to the curves on disk.

    keys_at: gives the names of the images of a step.
    """

    job: Job
    place: Place
    done: int
    keys_at: Callable[[int], list[str]]
    losses: list[Tensor] = field(default_factory=list)  # a step each: summed loss, valid pixels
    since: float = field(default_factory=time.perf_counter)
    lr: float = 0.0

    def add(self, counted: Tensor, lr: float) -> None:
        self.losses.append(counted)
        self.lr = lr

    def log(self, done: int) -> None:
        """Every worker calls it at the same steps. UserError if the loss is no number any more."""
        by_step = self.place.total(torch.stack(self.losses)).tolist()
        for step, (summed, _) in enumerate(by_step, start=self.done):
            if not math.isfinite(summed):
                raise UserError(
                    f"{self.job.net}: the loss is {summed} in step {step + 1}, images "
                    f"{', '.join(self.keys_at(step))}; lower nets.{self.job.net}.lr (now {self.job.lr}) or look at "
                    f"these images; the last good checkpoint is kept in {self.job.folder}"
                )
        loss = sum(summed for summed, _ in by_step) / max(sum(pixels for _, pixels in by_step), 1)
        elapsed = time.perf_counter() - self.since
        num_steps = done - self.done
        rate = num_steps * self.job.batch_size / elapsed
        if self.place.is_first:
            left = (self.job.iterations - done) * elapsed / num_steps
            print(
                f"{self.job.net}  {done}/{self.job.iterations}  loss {loss:.4f}  {rate:.1f} images/s  "
                f"{_clock(left)} left",
                flush=True,
            )
            values = {"loss": loss, "lr": self.lr, "images_per_s": rate}
            spool.append(self.job.folder / CURVES, done, values)
        self.losses, self.since, self.done = [], time.perf_counter(), done


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])
