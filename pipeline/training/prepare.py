"""Prepares one net's run: finds its parent and data, and names it after everything that decides its result."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from fcn.optim import batch_rule
from pipeline import git, paths
from pipeline.config import CHAIN, STRIDE, Net, Profile, Train
from pipeline.config.job import Job
from pipeline.errors import CheckpointError, DatasetError
from pipeline.files import code_digest
from pipeline.inspection.describe import refuse_missing_classes
from pipeline.models import checkpoint
from pipeline.shards.read import Shards, open_shards
from pipeline.training import provenance
from pipeline.training.preflight import check_shapes

CODE = Path(__file__).parents[2]
# Keys of `train` that may change before a stopped run is resumed: they split the work and do not change the result.
SPLITS_WORK = {"num_workers", "use_gpu", "accumulation"}
# Keys of a parent's file that record where and when it was made. Only its weights and settings affect the result.
RECORDS_ORIGIN = {"lineage", "origin"}


def make_job(profile_name: str, profile: Profile, net: str, root: Path) -> Job:
    """Return the net's job. Its identity is a hash of recipe, code, training images and parent.

    Validation images are part of it where their scores decide which net is kept, or when it stops.

    root: the project's folder, absolute.

    Raises CheckpointError if the parent is missing or damaged, or the shards have other classes than the profile;
    ShardError if the shards are damaged; DatasetError if a class is in no training image, or `train.best_by` cannot be
    scored on the validation images; UserError if the net cannot compute a step.
    """
    starts_chain = net == CHAIN[0] or profile.model.at_once
    parent_name = "backbone" if starts_chain else CHAIN[CHAIN.index(net) - 1]
    parent = root / paths.model(profile_name, parent_name)
    kind = "backbone" if starts_chain else "model"
    content, parent_digest = checkpoint.load(parent, kind)
    cache = root / paths.VERIFIED
    shards = open_shards(
        root / paths.shards(profile_name, "train"),
        split="train",
        cache=cache,
        verify_all=profile.run.verify_shards == "full",
    )
    if list(shards.classes) != profile.data.classes:
        raise CheckpointError(
            f"{shards.folder} has classes {', '.join(shards.classes)}, "
            f"data.classes is {', '.join(profile.data.classes)}; run `dvc repro shard`"
        )
    refuse_missing_classes(shards, allow_partial=profile.data.allow_partial)
    validation = root / paths.shards(profile_name, "val")
    chosen_on = []
    if profile.train.chooses:
        held_out = open_shards(validation, split="val", cache=cache)
        refuse_unscored(profile.train, held_out)
        chosen_on = [held_out.digest]
    model = profile.model.arguments() | {"num_classes": len(shards.classes), "stride": STRIDE[net]}
    digest_inputs = [
        net,
        model,
        profile.train.model_dump(exclude=SPLITS_WORK),
        profile.net(net).model_dump(),
        shards.digest,
        *chosen_on,
        checkpoint.content_digest({key: content[key] for key in content if key not in RECORDS_ORIGIN}),
        code_digest(CODE, code_that_decides()),
    ]
    digest = hashlib.sha256(json.dumps(digest_inputs, sort_keys=True).encode()).hexdigest()
    identity = f"{net}-{digest[:12]}"
    train, recipe = _apply_batch_rule(profile.train, profile.net(net))
    commit = git.find_commit(root)
    job = Job(
        identity=identity,
        net=net,
        model=model,
        classes=shards.classes,
        train=train,
        run=profile.run,
        recipe=recipe,
        parent=parent,
        shards=shards.folder,
        validation=validation,
        folder=root / paths.RUNS / profile_name / identity,
        lineage={
            "net": net,
            "parent": parent_name,
            "parent_sha256": parent_digest,
            "data_digest": shards.digest,
            "identity": identity,
            "chain": identity if starts_chain else content["lineage"]["chain"],
        },
        cache=cache,
        git=commit.tags() if commit else {},
        inherited=provenance.inherited(kind, content, parent_digest, shards),
    )
    check_shapes(job, shards.sizes)
    return job


def refuse_unscored(train: Train, held_out: Shards) -> None:
    """Raise DatasetError if the images of a validation have no pixel that `train.best_by` scores."""
    rows = held_out.table["class_pixels"].slice(0, train.validate_images).to_pylist()
    pixels = dict(zip(held_out.classes, np.sum(rows, 0).tolist(), strict=True))
    by, _, name = train.best_by.partition("/")
    if not (pixels[name] if by == "iu" else sum(pixels.values())):
        raise DatasetError(
            f"train.best_by {train.best_by}: the first {len(rows)} images of {held_out.folder} have no pixel of "
            f"{name if by == 'iu' else 'any class'}; raise train.validate_images (now {train.validate_images}) or "
            "choose by another score"
        )


def code_that_decides() -> list[str]:
    """Return the code folders that affect a run's result: those that the train stage of dvc.yaml depends on."""
    stages = YAML(typ="safe", pure=True).load((CODE / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [dep for dep in stages["train"]["do"]["deps"] if dep.startswith(("fcn", "pipeline/"))]


def _apply_batch_rule(train: Train, recipe: Net) -> tuple[Train, Net]:
    """Return both with lr, momentum and iterations for `train.batch_size`, if `train.batch_rule` is set."""
    if not train.batch_rule:
        return train, recipe
    lr, momentum = batch_rule(recipe.lr, train.optimizer.momentum, train.batch_size)
    optimizer = train.optimizer.model_copy(update={"momentum": momentum})
    iterations = math.ceil(recipe.iterations / train.batch_size)
    return train.model_copy(update={"optimizer": optimizer}), Net(lr=lr, iterations=iterations)
