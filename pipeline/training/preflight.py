"""What would end a long run hours later is looked for in its first seconds."""

import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn import IGNORE_LABEL
from fcn.loss import count_valid, pixel_cross_entropy
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.distributed.rank import Place
from pipeline.errors import UserError
from pipeline.loading.transforms import largest
from pipeline.models.checkpoint import KEPT
from pipeline.monitoring.meter import peak_memory_gb
from pipeline.shards.dataset import Samples
from pipeline.shards.read import Shards
from pipeline.training.step import autocast

OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}  # numbers an optimizer keeps for each one that learns
CHANCE_TOLERANCE = 0.02  # of ln C, which bfloat16 misses by less


def check_start(job: Job, model: FCN, shards: Shards, place: Place) -> None:
    """Takes the largest batch there can be through the net and back, and leaves no trace of it.

    UserError if memory or disk will not do, if loss or gradients are no numbers, or if a net whose scores begin at
    zero does not begin with a loss of ln C a pixel. Every worker calls it; the first says what it found.
    """
    state = sum(t.nbytes for t in model.state_dict().values())
    learned = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    checkpoint_bytes = state + OPTIMIZER_COPIES[job.optimizer] * learned
    if place.is_first:
        check_disk(job, (KEPT + 1) * checkpoint_bytes + 2 * state)
    image, label = largest_batch(job, shards, job.inner_batch_size // place.world)
    with torch.random.fork_rng(devices=[place.device] if place.device.type == "cuda" else []):
        loss = first_loss(job, model, image.to(place.device), label.to(place.device).long(), place)
    check_memory(job, OPTIMIZER_COPIES[job.optimizer] * learned, checkpoint_bytes, place)
    chance = math.log(model.num_classes)
    if scores_are_zero(model) and math.isfinite(loss) and abs(loss / chance - 1) > CHANCE_TOLERANCE:
        raise UserError(
            f"{job.net}: the first loss is {loss:.4f} a pixel; of scores that begin at zero it must be "
            f"ln {model.num_classes} = {chance:.4f}"
        )
    if place.is_first:
        n, _, height, width = image.shape
        print(
            f"{job.net}  check: {n} x {height}x{width} a worker, loss {loss:.4f} (by chance {chance:.4f}), "
            f"memory {peak_memory_gb(place.device):.2f} GB, checkpoints {KEPT} x {checkpoint_bytes / 1e6:.0f} MB",
            flush=True,
        )


def scores_are_zero(model: FCN) -> bool:
    """Whether every score layer begins at zero: not with score_init "random", and not from a parent net."""
    layers = [layer for name, layer in model.named_children() if name.startswith("score_")]
    return not any(p.any() for layer in layers for p in layer.parameters())


def largest_batch(job: Job, shards: Shards, num: int) -> tuple[Tensor, Tensor]:
    """(image, label) of the images with most pixels, padded or cut to the greatest size a worker can meet."""
    sides = [shards.table[name].to_numpy() for name in ("height", "width")]
    by_size = np.argsort(-sides[0].astype(np.int64) * sides[1], kind="stable")
    height, width = largest(job.transforms, (int(sides[0].max()), int(sides[1].max())))
    samples, images, labels = Samples(shards), [], []
    for index in np.resize(by_size, num).tolist():
        image, label, _ = samples[index]
        border = (0, width - image.shape[-1], 0, height - image.shape[-2])  # what is below zero is cut
        images.append(F.pad(image, border))
        labels.append(F.pad(label, border, value=IGNORE_LABEL))
    return torch.cat(images), torch.cat(labels)


def first_loss(job: Job, model: FCN, image: Tensor, label: Tensor, place: Place) -> float:
    """Loss a valid pixel, nan if there is none; UserError if it or a gradient is no number, or memory runs out."""
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    try:
        with autocast(job.precision, place.device):
            score = model(image)
        loss = pixel_cross_entropy(score, label) * len(label) / count_valid(label)
        if count_valid(label):
            loss.backward()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{job.net}: {tuple(image.shape)} images at a time do not fit into {place.device}'s memory; raise "
            f"train.accumulation (now {job.accumulation}) or lower train.batch_size (now {job.batch_size})"
        ) from error
    refuse_no_numbers(job, model, loss, bool(count_valid(label)))
    model.zero_grad(set_to_none=True)
    for name, tensor in model.named_buffers():
        tensor.copy_(buffers[name])
    return loss.item()


def refuse_no_numbers(job: Job, model: nn.Module, loss: Tensor, has_pixels: bool) -> None:
    if has_pixels and not loss.isfinite():
        raise UserError(
            f"{job.net}: the first loss is {loss.item()}; the weights of {job.parent} are at fault"
        )
    for name, p in model.named_parameters():
        if p.grad is not None and not p.grad.isfinite().all():
            raise UserError(f"{job.net}: the first gradient of {name} is not finite; look at {job.parent}")


def check_disk(job: Job, needed: int) -> None:
    free = shutil.disk_usage(job.folder).free
    if free < needed:
        raise UserError(
            f"{job.net}: checkpoints need {needed / 1e9:.1f} GB in {job.folder}, {free / 1e9:.1f} GB are free there"
        )


def check_memory(job: Job, optimizer_bytes: int, snapshot_bytes: int, place: Place) -> None:
    """UserError if what comes on top of the first batch does not fit: the optimizer's numbers, a checkpoint's copy."""
    needed, free, where = snapshot_bytes, available_memory(), "the machine's memory"
    if place.device.type == "cuda":
        needed, free = optimizer_bytes, torch.cuda.mem_get_info(place.device)[0]
        where = f"{place.device}'s memory"
    else:
        needed += optimizer_bytes
    if needed > free:
        raise UserError(
            f"{job.net}: {needed / 1e9:.1f} GB more are needed in {where} than the first batch took, "
            f"{free / 1e9:.1f} GB are free; lower train.batch_size (now {job.batch_size}) or raise train.accumulation"
        )


def available_memory() -> float:
    """Bytes this machine can still give; infinite where it does not say (other systems than Linux)."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return math.inf
    line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024
