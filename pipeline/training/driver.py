"""Starts or resumes one net's run: names it after what decides its result, and puts it on the workers."""

import hashlib
import json
import math
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcn.optim import batch_rule
from pipeline import paths, tracking
from pipeline.cluster import ray_workers
from pipeline.config import CHAIN, STRIDE, Net, Profile, Train
from pipeline.config.job import Job
from pipeline.curves import read_points, write_curve
from pipeline.errors import CheckpointError
from pipeline.files import lock
from pipeline.loading.transforms import Transforms
from pipeline.models import checkpoint
from pipeline.monitoring.meter import CURVES, STOP
from pipeline.shards.read import open_shards
from pipeline.training import provenance
from pipeline.training.loop import FINAL, train_worker

CODE = Path(__file__).parent.parent.parent
DECIDES_RESULT = (
    "fcn/backbones/alexnet.py",
    "fcn/backbones/features.py",
    "fcn/geometry.py",
    "fcn/backbones/googlenet.py",
    "fcn/loss.py",
    "fcn/backbones/mobilenet.py",
    "fcn/model.py",
    "fcn/optim.py",
    "fcn/pixels.py",
    "fcn/backbones/resnet.py",
    "fcn/surgery.py",
    "fcn/backbones/vgg.py",
    "pipeline/shards/labels.py",
    "pipeline/distributed/gradients.py",
    "pipeline/shards/manifest.py",
    "pipeline/distributed/meeting.py",
    "pipeline/distributed/batch_norm.py",
    "pipeline/loading/sampler.py",
    "pipeline/distributed/rank.py",
    "pipeline/shards/dataset.py",
    "pipeline/distributed/shared_memory.py",
    "pipeline/shards/read.py",
    "pipeline/training/step.py",
    "pipeline/loading/loader.py",
    "pipeline/training/loop.py",
    "pipeline/training/provenance.py",
    "pipeline/loading/transforms.py",
)
ONLY_SPLITS = {"num_workers", "use_gpu", "accumulation"}  # keys of train that a stopped run may go on without
# Of a parent's file: where, when and by whom it was made; its weights decide
NAMELESS = {"lineage", "origin"}
PARENT_POLL_S = 1.0
ATTEMPT = "attempt"  # a random name for this try at a run: survives a resume, and finds its run in MLflow
FINISHED = "finished"  # marks a run whose model was handed over: to train it again is to begin anew


def train_net(profile_name: str, profile: Profile, net: str, root: Path) -> Path:
    """Trains one net of the chain, or goes on where it was stopped; writes models/<profile>/<net>.pt and its curve.

    root: the project's, absolute. SIGTERM, or the end of the `dvc repro` that started it, has the workers write a
    checkpoint; it then ends in KeyboardInterrupt.
    """
    job = make_job(profile_name, profile, net, root)
    with lock(job.folder.with_suffix(".driver.lock"), f"trains {net} already") as has_waited:
        tracker = tracking.Tracker(profile_name, root)
        # Whom we waited for may have finished what we were started for
        if (job.folder / FINISHED).exists() and not has_waited:
            tracker.shelf.keep_curves(job.folder)
            shutil.rmtree(job.folder)
        job.folder.mkdir(parents=True, exist_ok=True)
        params = (
            {"net": net} | profile.model_dump(mode="json", exclude={"nets"}) | profile.net(net).model_dump()
        )
        record = tracker.record(
            "training",
            net,
            "fcn.attempt",
            _attempt(job.folder),
            params=params,
            datasets={"train": job.lineage["data_digest"]},
            curves=job.folder / CURVES,
        )
        follower = tracking.Follower(tracker, record)
        if not _is_trained(job.folder / FINAL):
            with follower:
                _run(job, profile)
        model = root / paths.model(profile_name, net)
        digest = _hand_over(job.folder / FINAL, model)
        points = read_points(job.folder / CURVES, after_step=-1)
        write_curve(root / paths.curve(profile_name, net), net, job.lineage["parent"], points)
        tags = {"model_sha256": digest, **{key: str(value) for key, value in job.lineage.items()}}
        if profile.data.allow_leak:
            tags["allow_leak"] = "; ".join(profile.data.allow_leak)
        tracker.log(follower.record, {}, tags, model=job.folder / FINAL)
        (job.folder / FINISHED).touch()
    return model


def _run(job: Job, profile: Profile) -> None:
    """Puts the job on workers until the final model is there; KeyboardInterrupt if they were asked to stop."""
    stop = job.folder / STOP
    stop.unlink(missing_ok=True)
    with _orphan_stops(stop):
        ray_workers.run_workers(
            train_worker,
            job,
            name=job.identity,
            storage=job.folder.parent,
            num_workers=profile.train.num_workers,
            min_workers=profile.run.min_workers,
            divided=job.inner_batch_size,
            use_gpu=profile.train.use_gpu,
            cpus_per_worker=profile.run.cpus_per_worker,
            max_failures=profile.run.max_failures,
            on_sigterm=stop.touch,
        )
    if not (job.folder / FINAL).exists() and stop.exists():
        raise KeyboardInterrupt


@contextmanager
def _orphan_stops(stop: Path) -> Iterator[None]:
    """Asks the workers to stop if the `dvc repro` that runs this stage dies: its next run would find us at work."""
    done = threading.Event()
    parent = os.getppid()

    def watch() -> None:
        while not done.wait(PARENT_POLL_S):
            if os.getppid() != parent:
                stop.touch()
                return

    if "DVC_STAGE" in os.environ:  # else whoever started this may leave it to itself
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def make_job(profile_name: str, profile: Profile, net: str, root: Path) -> Job:
    """The net's job; its identity is a hash of recipe, code, training images and parent."""
    starts_chain = net == CHAIN[0] or profile.model.at_once
    previous = "backbone" if starts_chain else CHAIN[CHAIN.index(net) - 1]
    parent = root / paths.model(profile_name, previous)
    kind = "backbone" if previous == "backbone" else "model"
    content, parent_digest = checkpoint.load(parent, kind)
    cache = root / paths.VERIFIED
    shards = open_shards(
        root / paths.shards(profile_name, "train"),
        split="train",
        cache=cache,
        anew=profile.run.verify_shards == "full",
    )
    if list(shards.classes) != profile.data.classes:
        raise CheckpointError(
            f"{shards.folder} has classes {', '.join(shards.classes)}, "
            f"data.classes says {', '.join(profile.data.classes)}; run `dvc repro shard`"
        )
    model = profile.model.arguments() | {"num_classes": len(shards.classes), "stride": STRIDE[net]}
    shared, recipe = profile.train, profile.net(net)
    decides = [
        net,
        model,
        shared.model_dump(exclude=ONLY_SPLITS),
        recipe.model_dump(),
        shards.digest,
        checkpoint.content_digest({key: content[key] for key in content if key not in NAMELESS}),
        code_digest(),
    ]
    identity = f"{net}-{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]}"
    lineage = {
        "net": net,
        "parent": previous,
        "parent_sha256": parent_digest,
        "data_digest": shards.digest,
        "identity": identity,
        "chain": content["lineage"]["chain"] if previous != "backbone" else identity,
    }
    return Job(
        identity=identity,
        net=net,
        model=model,
        classes=shards.classes,
        parent=parent,
        shards=shards.folder,
        validation=root / paths.shards(profile_name, "val"),
        folder=root / paths.RUNS / profile_name / identity,
        lineage=lineage,
        git=_git(root),
        batch_size=shared.batch_size,
        accumulation=shared.accumulation,
        loss=shared.loss,
        optimizer=shared.optimizer.name,
        weight_decay=shared.optimizer.weight_decay,
        trunk_lr_factor=shared.optimizer.trunk_lr_factor,
        schedule=shared.schedule,
        sampling=shared.sampling,
        size_buckets=shared.size_buckets,
        transforms=Transforms(**dict(shared.transforms)),
        precision=shared.precision,
        batch_norm=shared.batch_norm,
        class_balancing=shared.class_balancing,
        sample_pixels=shared.sample_pixels,
        exchange=shared.exchange.model_dump(),
        seed=shared.seed,
        loader_workers=profile.run.loader_workers,
        log_every=profile.run.log_every,
        log_every_s=profile.run.log_every_s,
        checkpoint_every=profile.run.checkpoint_every,
        validate_every=profile.run.validate_every,
        validate_images=profile.run.validate_images,
        cache=cache,
        inherited=provenance.inherited(kind, content, parent_digest, shards),
        **_steps(shared, recipe),
    )


def _git(root: Path) -> dict[str, str]:
    """The commit of the code as a model's file says it; MLflow's own names are for MLflow."""
    return {key: value for key, value in tracking.git_tags(root).items() if key.startswith("git_")}


def _steps(shared: Train, recipe: Net) -> dict[str, Any]:
    """lr, momentum and iterations, as the profile gives them or, with batch_rule, for its batch_size."""
    lr, momentum, iterations = recipe.lr, shared.optimizer.momentum, recipe.iterations
    if shared.batch_rule:
        lr, momentum = batch_rule(lr, momentum, shared.batch_size)
        iterations = math.ceil(iterations / shared.batch_size)
    return {"lr": lr, "momentum": momentum, "iterations": iterations}


def code_digest() -> str:
    """sha256 over the source files that decide what a run learns; a change of them is another run."""
    digest = hashlib.sha256()
    for name in DECIDES_RESULT:
        digest.update(name.encode() + b"\0" + (CODE / name).read_bytes())
    return digest.hexdigest()


def _attempt(folder: Path) -> str:
    path = folder / ATTEMPT
    if not path.exists() or not path.read_text(encoding="utf-8"):  # empty: killed before it was written
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _is_trained(final: Path) -> bool:
    """Whether a driver that was stopped later left a whole final model."""
    if not final.exists():
        return False
    try:
        checkpoint.load(final, "model")
    except CheckpointError:
        final.unlink()
        return False
    return True


def _hand_over(final: Path, model: Path) -> str:
    """Copies the run's final model to where DVC looks for it; its sha256."""
    _, digest = checkpoint.load(final, "model")
    model.parent.mkdir(parents=True, exist_ok=True)
    partial = model.with_name(f".{model.name}.partial")
    shutil.copyfile(final, partial)
    partial.replace(model)
    return digest
