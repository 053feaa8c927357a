"""Starts or resumes one net's run: names it after what decides its result, and puts it on the workers."""

import hashlib
import json
import secrets
import shutil
from pathlib import Path

from pipeline import checkpoint, cluster, paths, tracking
from pipeline.config import CHAIN, STRIDE, Profile
from pipeline.errors import CheckpointError
from pipeline.shards import open_shards
from pipeline.train import CURVES, FINAL, Job, train_worker

CODE = Path(__file__).parent.parent
DECIDES_RESULT = (
    "fcn/*.py",
    "pipeline/train.py",
    "pipeline/stream.py",
    "pipeline/exchange.py",
    "pipeline/place.py",
    "pipeline/shards.py",
    "pipeline/datasets/files.py",
)
ATTEMPT = "attempt"  # a random name for this try at a run: survives a resume, and finds its run in MLflow
FINISHED = "finished"  # marks a run whose model was handed over: to train it again is to begin anew


def train_net(profile_name: str, profile: Profile, net: str, root: Path) -> Path:
    """Trains one net of the chain, or goes on where it was stopped, and writes models/<profile>/<net>.pt.

    root: the project's, absolute.
    """
    job = make_job(profile_name, profile, net, root)
    if (job.folder / FINISHED).exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    tracker = tracking.Tracker(profile_name, root)
    params = {"net": net} | profile.model_dump(mode="json", exclude={"nets"}) | profile.net(net).model_dump()
    follower = tracking.Follower(tracker, job.folder / CURVES, net, _attempt(job.folder), params)
    if not _is_trained(job.folder / FINAL):
        with follower:
            cluster.run_workers(
                train_worker,
                job,
                name=job.identity,
                storage=job.folder.parent,
                num_workers=profile.train.num_workers,
                min_workers=profile.run.min_workers or profile.train.num_workers,
                divided=job.batch_size,
                use_gpu=profile.train.use_gpu,
                cpus_per_worker=profile.run.cpus_per_worker,
                max_failures=profile.run.max_failures,
            )
    model = root / paths.model(profile_name, net)
    digest = _hand_over(job.folder / FINAL, model)
    with tracking.outage_only_warns(f"the curves are kept in {job.folder / CURVES}"):
        tags = {"model_sha256": digest, **{key: str(value) for key, value in job.lineage.items()}}
        tracker.log(follower.replay(), {}, tags)
    (job.folder / FINISHED).touch()
    return model


def make_job(profile_name: str, profile: Profile, net: str, root: Path) -> Job:
    """The net's job; its identity is a hash of recipe, code, training images and parent."""
    starts_chain = net == CHAIN[0] or profile.model.at_once
    previous = "backbone" if starts_chain else CHAIN[CHAIN.index(net) - 1]
    parent = root / paths.model(profile_name, previous)
    content, parent_digest = checkpoint.load(parent, "backbone" if previous == "backbone" else "model")
    shards = open_shards(root / paths.shards(profile_name, "train"))
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
        shared.model_dump(),
        recipe.model_dump(),
        shards.digest,
        parent_digest,
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
        folder=root / paths.RUNS / profile_name / identity,
        lineage=lineage,
        iterations=recipe.iterations,
        lr=recipe.lr,
        batch_size=shared.batch_size,
        loss=shared.loss,
        optimizer=shared.optimizer.name,
        momentum=shared.optimizer.momentum,
        weight_decay=shared.optimizer.weight_decay,
        schedule=shared.schedule,
        sampling=shared.sampling,
        precision=shared.precision,
        class_balancing=shared.class_balancing,
        sample_pixels=shared.sample_pixels,
        exchange=shared.exchange.model_dump(),
        seed=shared.seed,
        loader_workers=profile.run.loader_workers,
        log_every=profile.run.log_every,
        checkpoint_every=profile.run.checkpoint_every,
    )


def code_digest() -> str:
    """sha256 over the source files that decide what a run learns; a change of them is another run."""
    digest = hashlib.sha256()
    for pattern in DECIDES_RESULT:
        for path in sorted(CODE.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
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
