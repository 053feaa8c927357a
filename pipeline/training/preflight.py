"""Pre-flight checks: memory, disk, and the first loss, before a long run."""

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
from pipeline.distributed.precision import autocast
from pipeline.distributed.rank import Rank
from pipeline.errors import UserError
from pipeline.loading.transforms import largest
from pipeline.models.checkpoint import NUM_KEPT
from pipeline.monitoring.meter import peak_memory_gb
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards

OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}  # numbers that an optimizer keeps for each parameter that learns
CHANCE_TOLERANCE = 0.02  # of ln C; bfloat16 misses by less


def check_start(job: Job, model: FCN, shards: Shards, rank: Rank) -> None:
    """Run the largest possible batch through the net and back, and restore the net; rank 0 prints the outcome.

    Every worker calls it.

    Raises UserError if memory or disk is too small; if the loss or a gradient is NaN or infinite; or if a net whose
    scores start at zero does not start with a loss of ln C per pixel.
    """
    state_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    learned_bytes = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer_bytes = OPTIMIZER_COPIES[job.train.optimizer.name] * learned_bytes
    checkpoint_bytes = state_bytes + optimizer_bytes
    if rank.is_first:
        check_disk(job, (NUM_KEPT + 1) * checkpoint_bytes + 2 * state_bytes)
    image, label = largest_batch(job, shards, job.inner_batch_size // rank.world_size)
    with torch.random.fork_rng(devices=[rank.device] if rank.device.type == "cuda" else []):
        loss = first_loss(job, model, image.to(rank.device), label.to(rank.device).long(), rank)
    check_memory(job, optimizer_bytes, checkpoint_bytes, rank)
    chance = math.log(model.num_classes)
    if scores_are_zero(model) and math.isfinite(loss) and abs(loss / chance - 1) > CHANCE_TOLERANCE:
        raise UserError(
            f"{job.net}: the first loss is {loss:.4f} a pixel; scores that start at zero must give "
            f"ln {model.num_classes} = {chance:.4f}"
        )
    if rank.is_first:
        num_images, _, height, width = image.shape
        print(
            f"{job.net}  check: {num_images} x {height}x{width} a worker, loss {loss:.4f} (chance {chance:.4f}), "
            f"memory {peak_memory_gb(rank.device):.2f} GB, checkpoints {NUM_KEPT} x {checkpoint_bytes / 1e6:.0f} MB",
            flush=True,
        )


def scores_are_zero(model: FCN) -> bool:
    """Return whether every score layer is zero: not with score_init "random", and not from a parent net."""
    layers = [layer for name, layer in model.named_children() if name.startswith("score_")]
    return not any(parameter.any() for layer in layers for parameter in layer.parameters())


def largest_batch(job: Job, shards: Shards, num_images: int) -> tuple[Tensor, Tensor]:
    """Return (image, label) of the images with most pixels, padded or cut to the largest size a batch can have."""
    heights, widths = (shards.table[side].to_numpy() for side in ("height", "width"))
    by_size = np.argsort(-heights.astype(np.int64) * widths, kind="stable")
    height, width = largest(job.train.transforms, (int(heights.max()), int(widths.max())))
    samples, images, labels = Dataset(shards), [], []
    for index in np.resize(by_size, num_images).tolist():
        image, label, _ = samples[index]
        border = (0, width - image.shape[-1], 0, height - image.shape[-2])  # a negative border cuts
        images.append(F.pad(image, border))
        labels.append(F.pad(label, border, value=IGNORE_LABEL))
    return torch.cat(images), torch.cat(labels)


def first_loss(job: Job, model: FCN, image: Tensor, label: Tensor, rank: Rank) -> float:
    """Return the loss per valid pixel, NaN without one. Buffers and gradients are left as they were.

    Raises UserError if memory runs out, or the loss or a gradient is NaN or infinite.
    """
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    num_valid = count_valid(label)
    try:
        with autocast(job.train.precision, rank.device):
            score = model(image)
        loss = pixel_cross_entropy(score, label) * len(label) / num_valid
        if num_valid:
            loss.backward()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{job.net}: {tuple(image.shape)} images at a time do not fit into {rank.device}'s memory; raise "
            f"train.accumulation (now {job.train.accumulation}) or lower train.batch_size "
            f"(now {job.train.batch_size})"
        ) from error
    if num_valid:
        refuse_not_finite(job, model, loss)
    model.zero_grad(set_to_none=True)
    for name, tensor in model.named_buffers():
        tensor.copy_(buffers[name])
    return loss.item()


def refuse_not_finite(job: Job, model: nn.Module, loss: Tensor) -> None:
    if not loss.isfinite():
        raise UserError(f"{job.net}: the first loss is {loss.item()}; check the weights in {job.parent}")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise UserError(
                f"{job.net}: the first gradient of {name} is not finite; check the weights in {job.parent}"
            )


def check_disk(job: Job, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(job.folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{job.net}: checkpoints need {needed_bytes / 1e9:.1f} GB in {job.folder}, "
            f"{free_bytes / 1e9:.1f} GB are free there"
        )


def check_memory(job: Job, optimizer_bytes: int, checkpoint_bytes: int, rank: Rank) -> None:
    """Raise UserError if memory beyond the first batch is missing: optimizer state, and a checkpoint's copy on CPUs."""
    if rank.device.type == "cuda":
        needed_bytes, free_bytes = optimizer_bytes, torch.cuda.mem_get_info(rank.device)[0]
        where = f"{rank.device}'s memory"
    else:
        needed_bytes, free_bytes = optimizer_bytes + checkpoint_bytes, available_memory()
        where = "the machine's memory"
    if needed_bytes > free_bytes:
        raise UserError(
            f"{job.net}: {needed_bytes / 1e9:.1f} GB more are needed in {where} after the first batch, "
            f"{free_bytes / 1e9:.1f} GB are free; lower train.batch_size (now {job.train.batch_size}) or raise "
            "train.accumulation"
        )


def available_memory() -> float:
    """Return the bytes that this machine can still allocate; infinity on systems other than Linux."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return math.inf
    line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024
