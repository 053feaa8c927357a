"""Pre-flight checks: shapes, memory, disk, and the first loss, before a long run."""

import math
import shutil

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fcn import IGNORE_LABEL
from fcn.loss import count_valid, pixel_cross_entropy
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.distributed.batch_norm import set_training
from pipeline.distributed.precision import autocast
from pipeline.distributed.rank import Rank
from pipeline.errors import UserError
from pipeline.loading.loader import Stream
from pipeline.loading.transforms import smallest
from pipeline.models.backbone import make_net
from pipeline.models.checkpoint import NUM_KEPT
from pipeline.monitoring.machine import available_memory
from pipeline.monitoring.meter import peak_memory_gb
from pipeline.shards.dataset import Dataset
from pipeline.training.step import pixel_loss

OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}  # numbers that an optimizer keeps for each parameter that learns
OUT_OF_MEMORY = (
    *("can't allocate memory", "could not create", "bad_alloc"),  # torch and oneDNN on a CPU
    *(
        "out of memory",
        "STATUS_ALLOC_FAILED",
    ),  # CUDA, NCCL, cuDNN and cuBLAS, whose errors have no type of their own
)
WORKER_LOST = (dist.DistError, torch.AcceleratorError)  # another worker, or this one's GPU: a restart helps
CHANCE_TOLERANCE = 0.02  # of ln C; bfloat16 misses by less


def check_start(job: Job, model: FCN, stream: Stream, rank: Rank) -> None:
    """Run the largest possible batch through the net and back, and restore the net; rank 0 prints the outcome.

    Every worker calls it.

    stream: the batches to come.

    Raises UserError if memory or disk is too small; if the pass fails; if the loss or a gradient is NaN or infinite;
    or if a net whose scores start at zero does not start with a loss of ln C per pixel.
    """
    state_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    learned_bytes = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer_bytes = OPTIMIZER_COPIES[job.train.optimizer.name] * learned_bytes
    average_bytes = state_bytes if job.train.ema else 0
    best_bytes = state_bytes if job.train.keep == "best" else 0  # in rank 0's memory, also with a GPU
    checkpoint_bytes = state_bytes + optimizer_bytes + average_bytes + best_bytes
    if rank.is_first:
        num_checkpoints = (
            NUM_KEPT + 1 + (0 < job.shared_steps < job.recipe.iterations)
        )  # one is kept for longer runs
        # The final model, its copies in models/ and in DVC's cache
        check_disk(job, num_checkpoints * checkpoint_bytes + 3 * state_bytes)
    image, label = largest_batch(stream)
    with torch.random.fork_rng(devices=[rank.device] if rank.device.type == "cuda" else []):
        loss = first_loss(job, model, image.to(rank.device), label.to(rank.device).long(), rank)
    check_memory(job, optimizer_bytes + average_bytes, best_bytes + checkpoint_bytes, rank)
    chance = math.log(model.num_classes)
    if scores_are_zero(model) and math.isfinite(loss) and abs(loss / chance - 1) > CHANCE_TOLERANCE:
        raise UserError(
            f"{job.title}: the first loss is {loss:.4f} a pixel; scores that start at zero must give "
            f"ln {model.num_classes} = {chance:.4f}"
        )
    if rank.is_first:
        num_images, _, height, width = image.shape
        print(
            f"{job.title}  check: {num_images} x {height}x{width} a worker in {job.train.precision}, loss {loss:.4f} "
            f"(chance {chance:.4f}), memory {peak_memory_gb(rank.device):.2f} GB, checkpoints {NUM_KEPT} x "
            f"{checkpoint_bytes / 1e6:.0f} MB",
            flush=True,
        )


def check_shapes(job: Job, sizes: NDArray[np.integer]) -> None:
    """Raise UserError if the net cannot compute the smallest batches that training may draw.

    The driver calls it before workers start. On the meta device a forward pass has shapes only and takes milliseconds.

    sizes: (N, 2) height and width of the training images.
    """
    train = job.train
    num_drawn = train.batch_size if train.sampling == "epochs" else 1  # one image may fill a step
    drawn = (np.argsort(key, kind="stable")[:num_drawn] for key in (*sizes.T, sizes.max(1)))
    padded = {tuple(sizes[indices].max(0).tolist()) for indices in drawn}
    # Statistics of synchronised batch norm are those of all workers' images
    num_images = job.inner_batch_size // (1 if train.batch_norm == "sync" else train.num_workers)
    with torch.device("meta"):
        model = make_net(job.model)
        set_training(model, train.batch_norm)
        for size in padded:
            image = torch.empty(num_images, 3, *smallest(train.transforms, size))
            try:
                model(image)
            except (RuntimeError, ValueError) as error:
                raise impossible(job, image, error) from error


def impossible(job: Job, image: Tensor, error: Exception) -> UserError:
    """Return the error of a pass that fails for every batch of the image's shape."""
    train, (num_images, _, height, width) = job.train, image.shape
    return UserError(
        f"{job.title}: a step of {num_images} x {height}x{width} a worker cannot be computed "
        f"({str(error).splitlines()[0].rstrip('.')}); use larger images or a larger train.transforms.crop (now "
        f"{train.transforms.crop}), more images a worker (train.batch_size {train.batch_size}, num_workers "
        f"{train.num_workers}, accumulation {train.accumulation}), train.batch_norm frozen (now {train.batch_norm}), "
        "or a smaller model.fc6_kernel"
    )


def scores_are_zero(model: FCN) -> bool:
    """Return whether every score layer is zero: not with score_init "random", and not from a parent net."""
    layers = [layer for name, layer in model.named_children() if name.startswith("score_")]
    return not any(parameter.any() for layer in layers for parameter in layer.parameters())


def largest_batch(stream: Stream) -> tuple[Tensor, Tensor]:
    """Return (image, label) of the images with most pixels, padded or cut to the largest size a batch can have."""
    by_size = np.argsort(-stream.shards.sizes.prod(1, dtype=np.int64), kind="stable")
    height, width = stream.max_size
    samples, images, labels = Dataset(stream.shards), [], []
    for index in np.resize(by_size, len(stream.positions(0))).tolist():
        image, label, _ = samples[index]
        border = (0, width - image.shape[-1], 0, height - image.shape[-2])  # a negative border cuts
        images.append(F.pad(image, border))
        labels.append(F.pad(label, border, value=IGNORE_LABEL))
    return torch.cat(images), torch.cat(labels)


def first_loss(job: Job, model: FCN, image: Tensor, label: Tensor, rank: Rank) -> float:
    """Return the cross entropy per valid pixel, NaN without one. Buffers and gradients are left as they were.

    The pass back is that of the profile's loss, which may need more memory.

    Raises UserError if the pass fails, memory runs out, or the loss or a gradient is NaN or infinite.
    """
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    num_valid = count_valid(label)
    try:
        with autocast(job.train.precision, rank.device):
            score = model(image)
        with torch.no_grad():
            loss = pixel_cross_entropy(score, label) * len(label) / num_valid
        if num_valid:
            pixel_loss(job, score, label, num_valid, None)[0].backward()
    except (RuntimeError, ValueError, MemoryError) as error:  # it would come again after every restart
        if not is_out_of_memory(error):
            if isinstance(error, WORKER_LOST):
                raise
            raise impossible(job, image, error) from error
        raise UserError(
            f"{job.title}: {tuple(image.shape)} images at a time do not fit into {rank.device}'s memory; raise "
            f"train.accumulation (now {job.train.accumulation}) or lower train.batch_size "
            f"(now {job.train.batch_size})"
        ) from error
    if num_valid:
        refuse_not_finite(job, model, loss)
    model.zero_grad(set_to_none=True)
    for name, tensor in model.named_buffers():
        tensor.copy_(buffers[name])
    return loss.item()


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY)


def refuse_not_finite(job: Job, model: nn.Module, loss: Tensor) -> None:
    if not loss.isfinite():
        raise UserError(f"{job.title}: the first loss is {loss.item()}; check the weights in {job.parent}")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise UserError(
                f"{job.title}: the first gradient of {name} is not finite; check the weights in {job.parent}"
            )


def check_disk(job: Job, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(job.folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{job.title}: checkpoints need {needed_bytes / 1e9:.1f} GB in {job.folder}, "
            f"{free_bytes / 1e9:.1f} GB are free there"
        )


def check_memory(job: Job, device_bytes: int, copied_bytes: int, rank: Rank) -> None:
    """Raise UserError if memory beyond the first batch is missing.

    device_bytes: what training adds on the device: optimizer state and averaged weights.
    copied_bytes: the best net and a checkpoint's copy, which are in the machine's memory; counted on CPUs alone.
    """
    if rank.device.type == "cuda":
        needed_bytes, free_bytes = device_bytes, torch.cuda.mem_get_info(rank.device)[0]
        where = f"{rank.device}'s memory"
    else:
        needed_bytes, free_bytes = device_bytes + copied_bytes, available_memory()
        where = "the machine's memory"
    if needed_bytes > free_bytes:
        raise UserError(
            f"{job.title}: {needed_bytes / 1e9:.1f} GB more are needed in {where} after the first batch, "
            f"{free_bytes / 1e9:.1f} GB are free; lower train.batch_size (now {job.train.batch_size}) or raise "
            "train.accumulation"
        )
