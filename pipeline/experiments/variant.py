"""Trains and scores a variant of a profile in a folder of its own, and logs it to MLflow as a child of its group."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fcn.averaging import Averaging
from pipeline import files, paths, tracking
from pipeline.config import CHAIN, Profile
from pipeline.config.job import Job
from pipeline.config.variant import Variant, shards_folder
from pipeline.download.weights import fetch_weights
from pipeline.errors import CheckpointError, ResultError
from pipeline.evaluation import per_image, scoring
from pipeline.evaluation.bootstrap import with_interval
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.results import read_result
from pipeline.models import backbone, checkpoint
from pipeline.monitoring.meter import CURVES
from pipeline.shards.read import open_shards
from pipeline.training import loop
from pipeline.training.driver import FINISHED, train_net
from pipeline.training.longer import is_of_another_end
from pipeline.training.loop import FINAL
from pipeline.training.prepare import DECIDES_END, make_job


def run_variant(
    profile_name: str, profile: Profile, root: Path, variant: Variant, last_net: str = CHAIN[-1]
) -> dict[str, dict[str, Any]]:
    """Train and score the nets of the chain up to `last_net`; return by net the content of its metrics JSON.

    It can be killed and called again: finished nets are not trained again, and an unfinished one resumes. It may run in
    a process of Ray, beside other variants. The variant's folder then holds models/, metrics/ and curves/.

    profile: the variant's own values, under the name of the profile whose data it uses.
    root: the project's folder, absolute.

    Raises UserError if a net cannot be trained or scored.
    """
    # Scoring uses the CPUs of its workers, which then have ended. Ray would give it one
    torch.set_num_threads(profile.train.num_workers * profile.run.cpus_per_worker)
    values = {}
    for net in CHAIN[: CHAIN.index(last_net) + 1]:
        train_variant(profile_name, profile, root, variant, net)
        values[net] = _score(profile_name, profile, net, root, variant)
        score = with_interval(values[net], "mean_iu")
        print(f"{variant.name} {net}: mean IU {score}", flush=True)
    return values


def train_variant(profile_name: str, profile: Profile, root: Path, variant: Variant, net: str) -> None:
    """Train one net in the variant's folder, unless it is trained; see `run_variant`."""
    _write_backbone(profile_name, profile, root, variant)
    if not _is_trained(profile_name, profile, net, root, variant):
        (variant.folder / paths.curve(profile_name, net)).unlink(missing_ok=True)  # of another run
        train_net(profile_name, profile, net, root, variant)


def _write_backbone(profile_name: str, profile: Profile, root: Path, variant: Variant) -> None:
    dest = variant.folder / paths.model(profile_name, "backbone")
    if dest.exists():
        return
    weights, model = profile.backbone.weights, profile.model.arguments()
    if profile.train.start:
        backbone.write_from_net(dest, model, profile.train.start)
    elif weights is None:
        backbone.write_random(dest, model, profile.backbone.seed)
    else:
        backbone.write_pretrained(dest, model, fetch_weights(weights, root / paths.DOWNLOADS))


def _is_trained(profile_name: str, profile: Profile, net: str, root: Path, variant: Variant) -> bool:
    """Return whether the variant's folder has this very net.

    If `dvc repro` made an equal one, take over its files, so that training only has to hand them over.
    """
    job = make_job(profile_name, profile, net, root, variant)
    if job.folder.exists():  # a run that was not handed over, or not logged
        return False
    if _is_of(job, variant.folder / paths.model(profile_name, net)):
        return True
    own_model = root / paths.model(profile_name, net)
    own = replace(job, folder=root / paths.RUNS / profile_name / job.identity)
    if (own.folder / FINISHED).exists() and not is_of_another_end(own) and _is_of(job, own_model):
        files.copy_file(own.folder / CURVES, job.folder / CURVES)
        files.copy_file(own_model, job.folder / FINAL)
    return False


def _is_of(job: Job, model: Path) -> bool:
    """Return whether a model file is what the job trains. Jobs that differ in their end alone have one identity."""
    try:
        content, _ = checkpoint.load(model, "model")
    except CheckpointError:
        return False
    before, now = content.get("origin", {}).get("recipe", {}), loop.recipe(job)
    return content["lineage"]["identity"] == job.identity and all(
        before.get(key) == now.get(key) for key in DECIDES_END
    )


def _score(profile_name: str, profile: Profile, net: str, root: Path, variant: Variant) -> dict[str, Any]:
    """Return the scores of a trained net; from its files, if they are of this model, these images and settings."""
    metrics = variant.folder / paths.metrics(profile_name, net)
    counts = variant.folder / paths.per_image(profile_name, net)
    content, digest = checkpoint.load(variant.folder / paths.model(profile_name, net), "model")
    if not _is_scored(profile_name, profile, net, root, variant, digest):
        done = evaluate(profile_name, profile, net, root, variant)
        per_image.write(counts, done.images)
        files.write_json(metrics, done.values, indent=2)
    values = json.loads(metrics.read_text(encoding="utf-8"))
    tracker = tracking.Tracker(profile_name, root)
    record = tracker.record(
        "evaluation",
        variant.run_name(net),
        tracking.MEMBER,
        variant.member(content["lineage"]["identity"]),
        params=content["lineage"],
        datasets={"val": values["val_digest"]},
        group=variant.group,
    )
    tags = {name: values[name] for name in ("model_sha256", "val_digest")}
    recorded, scores = tracker.records.begin(record), scoring.as_metrics(values)
    if recorded.ended_ms is None or recorded.metrics != scores:  # not of files that a killed process has left
        tracker.log(record, scores, tags, files=[metrics, counts])
    return values


def _is_scored(
    profile_name: str, profile: Profile, net: str, root: Path, variant: Variant, digest: str
) -> bool:
    """Return whether the files hold the scores of the model with this digest, of these images, by these settings."""
    counts = variant.folder / paths.per_image(profile_name, net)
    try:
        result = read_result(variant.folder / paths.metrics(profile_name, net), net)
    except ResultError:
        return False
    shards = open_shards(
        shards_folder(root, variant, profile_name, "val"), split="val", cache=root / paths.VERIFIED
    )
    settings = profile.evaluate
    averaging = Averaging(tuple(settings.scales), settings.flip)
    expected = {
        "model_sha256": digest,
        "val_digest": shards.digest,
        "averaging": None if averaging.is_none else json.loads(json.dumps(asdict(averaging))),
        "border_width": settings.border_width,
        "level": settings.level,
    }
    return counts.exists() and all(result.values.get(name) == value for name, value in expected.items())
