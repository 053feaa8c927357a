"""The training loop: what each worker runs, read from top to bottom."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from fcn.loss import balancing_weights
from fcn.model import FCN
from fcn.optim import parameter_groups, without_compiler
from fcn.surgery import transplant
from pipeline.config.job import Job
from pipeline.distributed.batch_norm import across_workers, set_training
from pipeline.distributed.gradients import exchanging
from pipeline.distributed.rank import Place
from pipeline.errors import CheckpointError, UserError
from pipeline.files import lock
from pipeline.loading.loader import Stream, loader
from pipeline.models import checkpoint
from pipeline.models.saver import Saver
from pipeline.monitoring.meter import Meter
from pipeline.monitoring.validation import validate
from pipeline.shards.read import Shards, open_shards
from pipeline.training import provenance
from pipeline.training.preflight import check_start
from pipeline.training.step import gradients

FINAL = "final.pt"
BEST = "best.pt"
POLY_POWER = 0.9  # Chen et al., DeepLab
PATIENCE_S = 120  # for the workers of a driver that was killed to end, which takes them seconds
PACKAGES = ("torch", "numpy", "pillow")  # whose versions have a say in the last bits of a result
# What a job holds besides its recipe: said elsewhere in the model's file, or a path of this machine
NO_RECIPE = {
    *("identity", "net", "model", "classes", "lineage", "inherited", "git"),
    *("parent", "shards", "validation", "folder", "cache"),
}


def train_worker(job: Job, place: Place) -> None:
    """Trains from the newest checkpoint, or from the parent, to the last iteration; the first worker writes files.

    Ends before that, with a checkpoint, when a file named meter.STOP appears in the run's folder.
    """
    torch.set_flush_denormal(True)
    with only_writer(job, place), Saver(job.folder) as saver:
        shards = open_shards(job.shards, split="train", cache=job.cache)
        held_out = open_shards(job.validation, split="val", cache=job.cache) if job.validate_every else None
        model = across_workers(start_model(job), job.batch_norm, place).to(place.device)
        set_training(model, job.batch_norm)
        check_start(job, model, shards, place)
        optimizer = make_optimizer(job, model)
        state = resume(job, model, optimizer, place)
        start, best = state["step"], state["best"]
        trained = exchanging(model, place, start=start, **job.exchange)
        stream = make_stream(job, shards, place)
        inner_steps = range(start * job.accumulation, job.iterations * job.accumulation)
        batches = loader(stream, inner_steps, job.loader_workers, pin=place.device.type == "cuda")
        class_weight = (
            balancing_weights(shards.class_pixels).to(place.device) if job.class_balancing else None
        )
        meter = Meter(job, place, start, state["unshown"], stream.keys)
        for step in range(start, job.iterations):
            optimizer.zero_grad(set_to_none=True)
            taken = meter.waiting(batches, job.accumulation)
            counted = gradients(job, trained, taken, step, place, class_weight)
            lr = set_rate(job, optimizer, step)
            optimizer.step()
            meter.add(counted, lr)
            done = step + 1
            if not meter.is_due(done):
                continue
            is_last = done == job.iterations
            is_asked_to_stop = meter.look(done) and not is_last
            is_to_save = done % job.checkpoint_every == 0 or is_asked_to_stop
            is_to_validate = held_out is not None and (is_last or done % job.validate_every == 0)
            if is_to_save or is_to_validate or is_last:
                refuse_broken(job, model, done)
            scores = validate(job, model, held_out, place) if held_out and is_to_validate else {}
            if scores.get("val_mean_iu", -1.0) > best:
                best = scores["val_mean_iu"]
                if place.is_first:
                    save_model(job, model, shards, place, BEST, {"step": done, "val_mean_iu": best})
            meter.show(done, scores)
            if is_to_save and place.is_first:
                saver.save(done, training_state(job, place, done, model, optimizer, best, meter.unshown))
            if is_asked_to_stop:
                break
        else:
            saver.wait()
            if place.is_first:
                save_model(job, model, shards, place, FINAL, {})
    if place.world > 1:
        place.agree(0)  # no worker leaves before the files are there


def only_writer(job: Job, place: Place) -> AbstractContextManager[object]:
    """For the first worker: no other process writes to the run's folder, such as one whose driver was killed."""
    if not place.is_first:
        return nullcontext()
    return lock(job.folder.with_suffix(".worker.lock"), "writes this run's checkpoints", PATIENCE_S)


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
    groups = parameter_groups(model, job.lr, job.weight_decay, job.trunk_lr_factor)
    if job.optimizer == "adamw":
        return without_compiler(torch.optim.AdamW)(groups, fused=True)
    return without_compiler(torch.optim.SGD)(groups, momentum=job.momentum, fused=True)


def learning_rate(job: Job, step: int) -> float:
    """The rate of weights at a step, 0 <= step < iterations; biases have their factor on top."""
    return job.lr * (1 - step / job.iterations) ** POLY_POWER if job.schedule == "poly" else job.lr


def set_rate(job: Job, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Gives every group its rate for a step; that of weights."""
    lr = learning_rate(job, step)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr


def resume(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, place: Place) -> dict[str, Any]:
    """Loads the newest checkpoint the first worker found good; what training_state gave, or its beginning."""
    content = checkpoint.latest_step(job.folder, job.identity) if place.is_first else None
    step = place.agree(content["step"] if content else 0)
    if step == 0:
        return {"step": 0, "best": -1.0, "unshown": [0.0, 0.0]}
    if content is None:
        content = checkpoint.load_step(job.folder, step)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if place.is_first:
        print(f"{job.net}  going on from step {step}{_changes(content, place)}", flush=True)
    return content


def _changes(content: dict[str, Any], place: Place) -> str:
    """Why a resumed run may differ from an undisturbed one in its last bits, or ""."""
    before = content["versions"]
    changed = [
        f"{name} is {now} and was {before[name]}" for name, now in versions().items() if now != before[name]
    ]
    if content["world"] != place.world:
        changed.append(f"{place.world} workers share what {content['world']} did")
    return f"; equal but for rounding from here: {', '.join(changed)}" if changed else ""


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def refuse_broken(job: Job, model: nn.Module, done: int) -> None:
    """UserError if a weight is no number any more: the loss shows it only one step later, when it would be on disk."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{job.net}: {name} is not finite after step {done}; lower nets.{job.net}.lr (now {job.lr}); "
                f"the last good checkpoint is kept in {job.folder}"
            )


def make_stream(job: Job, shards: Shards, place: Place) -> Stream:
    """What this worker reads."""
    return Stream(
        shards,
        job.batch_size,
        job.seed,
        sampling=job.sampling,
        size_buckets=job.size_buckets,
        transforms=job.transforms,
        accumulation=job.accumulation,
        rank=place.rank,
        world=place.world,
    )


def training_state(
    job: Job,
    place: Place,
    done: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: float,
    unshown: list[float],
) -> dict[str, Any]:
    """All that the steps after `done` depend on. Rate, order and random numbers are functions of job and step."""
    return {
        "identity": job.identity,
        "step": done,
        "position": done * job.batch_size,
        "world": place.world,
        "job": job.as_plain(),
        "versions": versions(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
        "unshown": unshown,
    }


def origin(job: Job, place: Place) -> dict[str, Any]:
    """How and where a model was made, which changes nothing of what it is: no two machines need to agree on it."""
    recipe = {key: value for key, value in asdict(job).items() if key not in NO_RECIPE}
    is_gpu = place.device.type == "cuda"
    hardware = {
        "workers": place.world,
        "device": torch.cuda.get_device_name(place.device) if is_gpu else "CPU",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    return {"git": job.git, "versions": versions(), "hardware": hardware, "recipe": recipe}


def save_model(
    job: Job, model: nn.Module, shards: Shards, place: Place, name: str, chosen: dict[str, float]
) -> None:
    """Writes a model file to the run's folder. chosen: why this step's, if it is not the last."""
    content = {
        "model": job.model,
        "classes": list(job.classes),
        "lineage": job.lineage | chosen,
        "trained_on": provenance.records(shards, job.inherited),
        "origin": origin(job, place),
        "state_dict": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
    }
    checkpoint.save(job.folder / name, "model", content)
