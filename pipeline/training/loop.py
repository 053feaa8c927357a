"""The training loop: what each worker runs, from top to bottom."""

import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import takewhile
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from fcn.model import FCN
from fcn.optim import learning_rate, parameter_groups
from fcn.surgery import take_classes, transplant
from pipeline.cache.client import NodeCache
from pipeline.config.job import Job
from pipeline.distributed.batch_norm import across_workers, set_training
from pipeline.distributed.gradients import average_gradients
from pipeline.distributed.precision import agreed
from pipeline.distributed.rank import Rank
from pipeline.errors import CheckpointError, ShardError, UserError
from pipeline.files import lock
from pipeline.loading.loader import Stream, loader
from pipeline.models import checkpoint
from pipeline.models.saver import Saver
from pipeline.monitoring.meter import Meter
from pipeline.monitoring.validation import validate
from pipeline.shards.read import Shards, open_shards
from pipeline.training import provenance
from pipeline.training.average import Average
from pipeline.training.choice import Choice
from pipeline.training.preflight import check_start
from pipeline.training.step import backward, class_weights

FINAL = "final.pt"
PATIENCE_S = 120  # the workers of a killed driver need seconds to end
PACKAGES = ("torch", "numpy", "pillow")  # their versions decide the last bits of a result


def train_worker(job: Job, rank: Rank) -> None:
    """Train from the newest checkpoint, or from the parent, to the last iteration; rank 0 writes files.

    Ends earlier when validations bring no gain (train.patience).
    Stops earlier, with a checkpoint, when a file named meter.STOP appears in the run's folder.
    """
    torch.set_flush_denormal(True)
    job = replace(job, train=job.train.model_copy(update={"precision": agreed(job.train.precision, rank)}))
    train, iterations = job.train, job.recipe.iterations
    with only_writer(job, rank), Saver(job.folder, job.shared_steps) as saver:
        node_cache = NodeCache(**job.run.cache.model_dump())
        shards = open_shards(job.shards, split="train", cache=job.cache, node_cache=node_cache)
        held_out = (
            open_shards(job.validation, split=job.validation_split, cache=job.cache, node_cache=node_cache)
            if job.validate_every
            else None
        )
        model = across_workers(start_model(job), train.batch_norm, rank).to(rank.device)
        set_training(model, train.batch_norm)
        stream = make_stream(job, shards, rank)
        check_start(job, model, stream, rank)
        optimizer = make_optimizer(job, model)
        average, choice = Average(job, model), Choice(job, held_out, rank)
        start, unshown = resume(job, model, optimizer, average, choice, rank)
        done = start
        parallel = average_gradients(
            model, rank, compression=train.exchange.compression, bucket_mb=train.exchange.bucket_mb
        )
        inner_steps = range(start * train.accumulation, iterations * train.accumulation)
        batches = loader(stream, inner_steps, job.run.loader_workers, pin=rank.device.type == "cuda")
        class_weight = class_weights(job, shards.class_pixels, rank.device)
        meter = Meter(job, rank, start, unshown, stream.keys, shards.blocks)
        for step in takewhile(choice.goes_on, range(start, iterations)):
            optimizer.zero_grad(set_to_none=True)
            try:
                inner_batches = meter.take(batches, train.accumulation)
            except ShardError:  # such as a store that is gone; other workers may be at other steps
                if rank.world_size == 1 and step > start:
                    if meter.has_steps:
                        meter.collect(step)
                    refuse_broken_weights(job, model, step)
                    state = training_state(job, rank, step, model, optimizer, average, choice, meter.unshown)
                    saver.save(step, state)
                raise
            loss = backward(job, parallel, inner_batches, step, rank, class_weight)
            lr = set_learning_rate(job, optimizer, step)
            optimizer.step()
            average.update(step)
            meter.add(loss, lr)
            done = step + 1
            if not meter.is_due(done):
                continue
            is_last = done == iterations
            is_stopped = meter.collect(done) and not is_last
            is_to_save = done % job.run.checkpoint_every == 0 or is_stopped or done == job.shared_steps
            is_to_validate = held_out is not None and (is_last or done % job.validate_every == 0)
            if is_to_save or is_to_validate or is_last:
                refuse_broken_weights(job, model, done)
            scores = validate(job, average.net, held_out, rank) if held_out and is_to_validate else {}
            choice.add(done, scores, average.averaged)
            meter.show(done, scores)
            if is_to_save and rank.is_first:
                state = training_state(job, rank, done, model, optimizer, average, choice, meter.unshown)
                saver.save(done, state)
            if is_stopped:
                break
        else:
            saver.wait()
            if rank.is_first:
                save_model(job, *choice.kept(done, average.net), shards, rank)
    if rank.world_size > 1:
        rank.agree(0)  # a barrier: no worker ends before the files are written


def only_writer(job: Job, rank: Rank) -> AbstractContextManager[object]:
    """For rank 0, lock the run's folder against a second writer, such as a worker whose driver was killed."""
    if not rank.is_first:
        return nullcontext()
    return lock(job.folder.with_suffix(".worker.lock"), "writes this run's checkpoints", PATIENCE_S)


def start_model(job: Job) -> FCN:
    """Return the net before its first step: its parent's parameters, and new layers with their initial values."""
    torch.manual_seed(job.train.seed)
    model = FCN(**job.model)
    try:
        if job.start:  # before the coarser net's layers, which replace those that it shares
            start, _ = checkpoint.load(job.start, "backbone")
            take_classes(model, job.classes, start["layers"], start["classes"])
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
    """Return SGD or AdamW over the paper's parameter groups."""
    settings = job.train.optimizer
    groups = parameter_groups(model, job.recipe.lr, settings.weight_decay, settings.trunk_lr_factor)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, momentum=settings.momentum, fused=True)


def set_learning_rate(job: Job, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Set every group's learning rate for a step; return that of weights."""
    train = job.train
    lr = learning_rate(
        job.recipe.lr, train.schedule, step, job.recipe.iterations, train.warmup, train.cooldown
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr


def resume(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    choice: Choice,
    rank: Rank,
) -> tuple[int, list[float]]:
    """Load the newest checkpoint that rank 0 found undamaged; return its step, 0 without one, and Meter.unshown.

    Its other content is not kept: a second copy of the weights would stay in each worker's memory.
    """
    content = checkpoint.latest_step(job.folder, job.identity) if rank.is_first else None
    step = rank.agree(content["step"] if content else 0)
    if step == 0:
        return 0, [0.0, 0.0]
    if content is None:
        content = checkpoint.load_step(job.folder, step)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    average.load_state_dict(content["average"])
    choice.resume(content["choice"])
    if rank.is_first:
        print(f"{job.title}  resumed from step {step}{_differences(content, job, rank)}", flush=True)
    return step, content["unshown"]


def _differences(content: dict[str, Any], job: Job, rank: Rank) -> str:
    """Return why a resumed run may differ from an uninterrupted one in its last bits, or ""."""
    before = content["versions"]
    changes = [
        f"{name} is {now} and was {before[name]}" for name, now in versions().items() if now != before[name]
    ]
    if content["world"] != rank.world_size:
        changes.append(f"{rank.world_size} workers instead of {content['world']}")
    now = recipe(job)
    for key in ("use_gpu", "accumulation", "precision"):  # "auto" may be another one on another machine
        if now[key] != content["recipe"][key]:
            changes.append(f"{key} {now[key]} instead of {content['recipe'][key]}")
    return f"; equal but for rounding from here: {', '.join(changes)}" if changes else ""


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def refuse_broken_weights(job: Job, model: nn.Module, done: int) -> None:
    """Raise UserError if a weight is NaN or infinite.

    The loss would show it a step later, after the checkpoint was written.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{job.title}: {name} is not finite after step {done}; lower nets.{job.net}.lr "
                f"(now {job.recipe.lr}); the last good checkpoint is kept in {job.folder}"
            )


def make_stream(job: Job, shards: Shards, rank: Rank) -> Stream:
    """Return the batches that this worker reads. Every worker must call it."""
    node = platform.node()
    return Stream(
        shards,
        job.train.batch_size,
        job.train.seed,
        sampling=job.train.sampling,
        size_buckets=job.train.size_buckets,
        transforms=job.train.transforms,
        accumulation=job.train.accumulation,
        rank=rank.number,
        world_size=rank.world_size,
        by_blocks=job.train.order == "blocks",
        workers_on_node=rank.gather(node).count(node),
    )


def training_state(
    job: Job,
    rank: Rank,
    done: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    choice: Choice,
    unshown: list[float],
) -> dict[str, Any]:
    """Return everything that later steps depend on. Rate, order and random draws are functions of job and step."""
    return {
        "identity": job.identity,
        "step": done,
        "position": done * job.train.batch_size,
        "world": rank.world_size,
        "recipe": recipe(job),
        "versions": versions(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "choice": choice.state,
        "unshown": unshown,
    }


def recipe(job: Job) -> dict[str, Any]:
    """Return the settings of a run as plain values, which a file can hold."""
    return job.recipe.model_dump() | job.train.model_dump(mode="json") | job.run.model_dump(mode="json")


def origin(job: Job, rank: Rank) -> dict[str, Any]:
    """Return how and where a model was made. It does not change the model; it may differ between machines."""
    is_gpu = rank.device.type == "cuda"
    hardware = {
        "workers": rank.world_size,
        "device": torch.cuda.get_device_name(rank.device) if is_gpu else "CPU",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    return {"git": job.git, "versions": versions(), "hardware": hardware, "recipe": recipe(job)}


def save_model(
    job: Job, weights: Mapping[str, Tensor], kept: dict[str, Any], shards: Shards, rank: Rank
) -> None:
    """Write the final model's file to the run's folder.

    weights, kept: of Choice.kept; the lineage records the second.
    """
    content = {
        "model": job.model,
        "classes": list(job.classes),
        "lineage": job.lineage | {"kept": kept},
        "trained_on": provenance.records(shards, job.inherited),
        "origin": origin(job, rank),
        "state_dict": {name: tensor.cpu() for name, tensor in weights.items()},
    }
    checkpoint.save(job.folder / FINAL, "model", content)
