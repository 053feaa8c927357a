"""Prepares one net's run: finds its parent and data, and names it after everything that decides its result."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from fcn.optim import batch_rule
from pipeline import files, git, paths
from pipeline.cache.client import NodeCache
from pipeline.config import CHAIN, STRIDE, Net, Profile, Train
from pipeline.config.job import Job
from pipeline.config.variant import Variant, results_folder, shards_folder
from pipeline.errors import CheckpointError, DatasetError
from pipeline.inspection import leaks
from pipeline.inspection.describe import refuse_missing_classes
from pipeline.models import checkpoint
from pipeline.shards.read import Shards, open_shards
from pipeline.training import provenance
from pipeline.training.preflight import check_shapes

CODE = Path(__file__).parents[2]
# Keys of `train` that may change before a stopped run is resumed: they split the work and do not change the result.
SPLITS_WORK = {"num_workers", "use_gpu", "accumulation"}
# Keys that decide where a rate that is fixed until then falls and ends; see longer.py
DECIDES_END = {"schedule", "cooldown", "iterations"}
# Keys of a parent's file that record where and when it was made. Only its weights and settings affect the result.
RECORDS_ORIGIN = {"lineage", "origin", "source"}


def make_job(
    profile_name: str, profile: Profile, net: str, root: Path, variant: Variant | None = None
) -> Job:
    """Return the net's job. Its identity is a hash of recipe, code, training images and parent.

    Validation images are part of it where their scores decide which net is kept, or when it stops. With the schedules
    fixed and cooldown, runs that differ in their end alone have one identity, because they share their first steps.

    root: the project's folder, absolute.
    variant: trains the net in a folder of its own; None: for the profile's own results.

    Raises CheckpointError if the parent is missing or damaged, or the shards have other classes than the profile;
    ShardError if the shards are damaged; DatasetError if a class is in no training image, or `train.best_by` cannot be
    scored on the validation images; LeakError if the net that train.start names was trained on images of val;
    UserError if the net cannot compute a step.
    """
    starts_chain = net == CHAIN[0] or profile.model.at_once
    parent_name = "backbone" if starts_chain else CHAIN[CHAIN.index(net) - 1]
    results = results_folder(root, variant)
    parent = results / paths.model(profile_name, parent_name)
    kind = "backbone" if starts_chain else "model"
    content, parent_digest = checkpoint.load(parent, kind)
    first = content if starts_chain else None  # the backbone, if it affects this net
    start = results / paths.model(profile_name, "backbone") if profile.train.start else None
    if start and not starts_chain:
        first, _ = checkpoint.load(start, "backbone")
    if first and first.get("lineage", {}).get("start") != profile.train.start:
        raise CheckpointError(
            f"{parent.with_name('backbone.pt')} was made of {first['source']}, train.start is {profile.train.start}; "
            "run `dvc repro`"
        )
    cache = root / paths.VERIFIED
    verified = partial(open_shards, cache=cache, verify_all=profile.run.verify_shards == "full")
    folder = shards_folder(root, variant, profile_name, "train")
    shards = verified(folder, split="train", node_cache=NodeCache(**profile.run.cache.model_dump()))
    if list(shards.classes) != profile.data.classes:
        raise CheckpointError(
            f"{shards.folder} has classes {', '.join(shards.classes)}, "
            f"data.classes is {', '.join(profile.data.classes)}; run `dvc repro shard`"
        )
    if kind == "model":
        shards.require_classes(content["classes"], parent)
    refuse_missing_classes(shards, allow_partial=profile.data.allow_partial)
    validation_split = profile.data.validation_split
    validation = shards_folder(root, variant, profile_name, validation_split)
    inherited, chosen_on = provenance.inherited(kind, content, parent_digest, shards), []
    if profile.train.chooses or profile.run.validate_every:
        held_out = verified(validation, split=validation_split)
        held_out.require_classes(shards.classes, shards.folder)
        if profile.train.chooses:
            refuse_unscored(profile.train, held_out)
            chosen_on = [held_out.digest]
    if start:
        val = verified(shards_folder(root, variant, profile_name, "val"), split="val")
        images = leaks.Images.of_shards("val", val)
        leaks.check_model(
            inherited, images, f"the net of train.start, {profile.train.start},", profile.data.allow_leak
        )
    if profile.data.tuning:
        tuning = verified(validation, split="tuning")
        inherited = provenance.with_tuning(tuning, inherited)
    model = profile.model.arguments() | {"num_classes": len(shards.classes), "stride": STRIDE[net]}
    has_shared_steps = profile.train.schedule in ("fixed", "cooldown")
    left_out = DECIDES_END if has_shared_steps else set()
    digest_inputs = [
        net,
        model,
        profile.train.model_dump(exclude=SPLITS_WORK | {"start"} | left_out),
        profile.net(net).model_dump(exclude=left_out),
        shards.digest,
        *chosen_on,
        [_content_digest(parent) for parent in (content, first) if parent],
        files.code_digest(CODE, code_that_decides()),
    ]
    digest = hashlib.sha256(json.dumps(digest_inputs, sort_keys=True).encode()).hexdigest()
    identity = f"{net}-{digest[:12]}"
    train, recipe = apply_batch_rule(profile.train, profile.net(net))
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
        shards=folder if "where" in shards.header else shards.folder,
        validation=validation,
        folder=results_folder(paths.project(root), variant) / paths.RUNS / profile_name / identity,
        lineage={
            "net": net,
            "parent": parent_name,
            "parent_sha256": parent_digest,
            "data_digest": shards.digest,
            "identity": identity,
            "chain": identity if starts_chain else content["lineage"]["chain"],
            **(start_lineage(first, shards.classes) if start and first else {}),
        },
        cache=cache,
        git=commit.tags() if commit else {},
        inherited=inherited,
        start=start,
        variant=variant.name if variant else "",
        validation_split=validation_split,
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


def start_digest(train: Train, root: Path) -> str:
    """Return the sha256 of the file that `train.start` names; "" if there is none."""
    start = root / Path(train.start).expanduser() if train.start else None
    return files.sha256_file(start) if start and start.exists() else ""


def start_lineage(backbone: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Return what the lineage of a chain's nets records of the net that the chain started from.

    backbone: content of a file that `backbone.write_from_net` wrote.
    classes: names of the new nets' classes.
    """
    before = backbone["classes"]
    sides = {
        "start_matched": [name for name in classes if name in before],
        "start_new": [name for name in classes if name not in before],
        "start_dropped": [name for name in before if name not in classes],
    }
    return backbone["lineage"] | {key: ", ".join(names) or "none" for key, names in sides.items()}


def code_that_decides() -> list[str]:
    """Return the code folders that affect a run's result: those that the train stage of dvc.yaml depends on."""
    stages = YAML(typ="safe", pure=True).load((CODE / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [dep for dep in stages["train"]["do"]["deps"] if dep.startswith(("fcn", "pipeline/"))]


def _content_digest(content: Mapping[str, Any]) -> str:
    return checkpoint.content_digest({key: content[key] for key in content if key not in RECORDS_ORIGIN})


def apply_batch_rule(train: Train, recipe: Net) -> tuple[Train, Net]:
    """Return both with lr, momentum, warmup and iterations for `train.batch_size`, if `train.batch_rule` is set."""
    if not train.batch_rule:
        return train, recipe
    lr, momentum = batch_rule(recipe.lr, train.optimizer.momentum, train.batch_size)
    optimizer = train.optimizer.model_copy(update={"momentum": momentum})
    iterations = math.ceil(recipe.iterations / train.batch_size)
    warmup = math.ceil(train.warmup / train.batch_size)
    train = train.model_copy(update={"optimizer": optimizer, "warmup": warmup})
    return train, Net(lr=lr, iterations=iterations)
