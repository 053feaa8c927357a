"""The gradients of one step: equal for any split of its images over workers and inner steps.

A step takes train.batch_size images, in train.accumulation inner steps of equal size, and each worker takes an equal
share of those. Gradients add up over inner steps; the workers average them once, in the last inner step.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcn.loss import (
    count_valid,
    inverse_weights,
    mean_over_images,
    mean_over_pixels,
    sampled,
    sum_over_pixels,
    weighted_sum,
)
from pipeline.config.job import Job
from pipeline.distributed.gradients import synchronised
from pipeline.distributed.precision import autocast
from pipeline.distributed.rank import Rank
from pipeline.shards.dataset import Batch


def backward(
    job: Job, model: nn.Module, batches: Sequence[Batch], step: int, rank: Rank, class_weight: Tensor | None
) -> Tensor:
    """Add the gradients of this worker's batches, one per inner step.

    After the last inner step, each worker holds the mean gradient.

    batches: one batch per inner step, train.accumulation in all.
    step: from 0.
    class_weight: from `class_weights`.

    Returns (2,) float64: the loss, the sum of train.terms, summed over this worker's pixels, and the number of those
    pixels. With loss "image_mean" both count images.
    """
    first = step * job.train.batch_size + rank.number
    # The position, in the endless sequence of samples, of each inner step's first image on this worker
    positions = range(first, first + job.train.batch_size, job.inner_batch_size)
    inner = [
        on_device(job, batch, position, rank.device)
        for position, batch in zip(positions, batches, strict=True)
    ]
    valid = valid_share(job, [label for _, label in inner], rank)
    total = torch.zeros(2, dtype=torch.float64, device=rank.device)
    for position, (image, label) in zip(positions, inner, strict=True):
        torch.manual_seed(random_seed(job.train.seed, "dropout", position))
        with synchronised(model, is_last=position == positions[-1]):
            with autocast(job.train.precision, rank.device):
                score = model(image)
            loss, count, divisor = pixel_loss(job, score, label, valid, class_weight)
            loss.backward()
        total += torch.stack([loss.detach().double() * divisor, count.double()])
    return total


def class_weights(job: Job, class_pixels: NDArray[np.int64], device: torch.device) -> Tensor | None:
    """Return the (C,) float32 weights of train.class_weights on the device; None if all are 1.

    class_pixels: (C,) pixels of each class in the training split.
    """
    match job.train.class_weights:
        case "none":
            return None
        case "inverse":
            return inverse_weights(torch.from_numpy(class_pixels)).to(device)
        case by_class:
            return torch.tensor([by_class.get(name, 1.0) for name in job.classes], device=device)


def on_device(job: Job, batch: Batch, position: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (image, label) on the device; the label keeps the pixels that the loss counts, the others are void."""
    image = batch.image.to(device, non_blocking=True)
    label = batch.label.to(device, non_blocking=True).long()
    if job.train.sample_pixels < 1:
        torch.manual_seed(random_seed(job.train.seed, "pixels", position))
        label = sampled(label, job.train.sample_pixels)
    return image, label


def valid_share(job: Job, labels: Sequence[Tensor], rank: Rank) -> Tensor:
    """Return the divisor of loss "mean": the step's valid pixels divided by the number of workers.

    labels: this worker's labels of all inner steps; the divisor is needed from the first one on.
    """
    valid = torch.stack([count_valid(label) for label in labels]).sum().double()
    if job.train.loss != "mean":
        return valid  # unused; saves a collective
    return rank.all_reduce(valid).clamp(min=1) / rank.world_size


def pixel_loss(
    job: Job, score: Tensor, label: Tensor, valid: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Return (loss of an inner step's share, the number of its terms, its divisor).

    The divisor makes gradients add up over inner steps, and average over workers, to those of the whole step.

    valid: from `valid_share`.
    """
    train = job.train
    loss = weighted_sum(
        score,
        label,
        train.terms.model_dump(),
        class_weight,
        smoothing=train.label_smoothing,
        gamma=train.focal_gamma,
    )
    if train.loss == "mean":
        return mean_over_pixels(loss, valid), count_valid(label), valid
    num_images = len(label) * train.accumulation
    if train.loss == "image_mean":
        num_terms = torch.tensor(len(label), device=label.device)
        return mean_over_images(loss, label) / train.accumulation, num_terms, num_images
    return sum_over_pixels(loss) / train.accumulation, count_valid(label), num_images


def random_seed(seed: int, use: str, position: int) -> int:
    """Return the seed of the random draws for the images from a position on.

    It is a function of the position, so a resumed run stores no random state, and any number of workers draws the
    same numbers.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {use} {position}".encode()).digest()[:8])
