"""One step's gradients: the same however its images are split over workers and inner steps.

A step takes job.batch_size images. Each of its job.accumulation inner steps takes as many of them, in their order,
and every worker as many of those. Gradients add up; the workers exchange them once, with the last inner step.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcn.loss import (
    count_valid,
    image_mean_cross_entropy,
    mean_pixel_cross_entropy,
    pixel_cross_entropy,
    sampled,
)
from pipeline.config.job import Job
from pipeline.distributed.rank import Place
from pipeline.shards.dataset import Batch


def gradients(
    job: Job, model: nn.Module, batches: Sequence[Batch], step: int, place: Place, class_weight: Tensor | None
) -> Tensor:
    """Adds the gradients of this worker's batches, one an inner step; with the last, all workers have the mean.

    [cross entropy summed over this worker's pixels, number of those pixels], float64, for "image_mean" of images.
    """
    first = step * job.batch_size + place.rank
    positions = range(
        first, first + job.batch_size, job.inner_batch_size
    )  # each inner step's first of this worker
    inner = [on_device(job, batch, at, place.device) for at, batch in zip(positions, batches, strict=True)]
    valid = valid_share(job, [label for _, label in inner], place)
    counted = torch.zeros(2, dtype=torch.float64, device=place.device)
    for position, (image, label) in zip(positions, inner, strict=True):
        torch.manual_seed(random_state(job.seed, "dropout", position))
        with exchanged(model, is_last=position == positions[-1]):
            with autocast(job.precision, place.device):
                score = model(image)
            loss, count, factor = pixel_loss(job, score, label, valid, class_weight)
            loss.backward()
        counted += torch.stack([loss.detach().double() * factor, count.double()])
    return counted


def on_device(job: Job, batch: Batch, position: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(image, label) where the net is, the label with those pixels that the loss counts."""
    image = batch.image.to(device, non_blocking=True)
    label = batch.label.to(device, non_blocking=True).long()
    if job.sample_pixels < 1:
        torch.manual_seed(random_state(job.seed, "pixels", position))
        label = sampled(label, job.sample_pixels)
    return image, label


def valid_share(job: Job, labels: Sequence[Tensor], place: Place) -> Tensor:
    """The step's valid pixels a worker, on average: what each divides by for "mean", however unevenly void is spread.

    labels: this worker's, of every inner step: the first of its gradients needs the number already.
    """
    valid = torch.stack([count_valid(label) for label in labels]).sum().double()
    # Nothing else needs it, and asking the other workers costs time
    return place.total(valid).clamp(min=1) / place.world if job.loss == "mean" else valid


def pixel_loss(
    job: Job, score: Tensor, label: Tensor, valid: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """(loss of an inner step's share, what it is a sum over, what it was divided by).

    Divided so that inner steps' gradients add up, and workers' average, to those of the whole step.
    valid: what valid_share gives.
    """
    if job.loss == "mean":
        return mean_pixel_cross_entropy(score, label, valid, class_weight), count_valid(label), valid
    images = len(label) * job.accumulation
    if job.loss == "image_mean":
        loss = image_mean_cross_entropy(score, label, class_weight)
        return loss / job.accumulation, torch.tensor(len(label), device=label.device), images
    return pixel_cross_entropy(score, label, class_weight) / job.accumulation, count_valid(label), images


def exchanged(model: nn.Module, *, is_last: bool) -> AbstractContextManager[object]:
    """Workers average their gradients in the last inner step alone."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 in the forward pass, if asked for or, with "auto", where a GPU has it."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    is_used = precision == "bfloat16" or (precision == "auto" and has_it)
    return torch.autocast(device.type, torch.bfloat16) if is_used else nullcontext()


def random_state(seed: int, use: str, position: int) -> int:
    """The seed of what is drawn at random for the images from a position on.

    A function of the position, so that a resumed run needs no state of it, and other workers draw the same.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {use} {position}".encode()).digest()[:8])
