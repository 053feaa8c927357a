"""Scores of a model on a split, and their JSON."""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fcn.averaging import Averaging
from fcn.metrics import ConfusionMatrix, Scores, trimap
from pipeline.cache.client import NodeCache
from pipeline.distributed.rank import Rank
from pipeline.errors import ShardError
from pipeline.evaluation.bootstrap import Bootstrap, intervals, mean_f1, mean_iu, pixel_acc
from pipeline.evaluation.per_image import PerImage
from pipeline.models.model_file import load_model
from pipeline.models.predictor import Predictor
from pipeline.progress import bar
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import digest_of_keys

ONCE = Averaging()  # as in the paper: each image once, at its own size


class Counts(NamedTuple):
    """Pixel counts of a split.

    confusion: over all pixels.
    images: (N, 2, 3, C) int64, ConfusionMatrix.per_class of each image, in the shards' order: of the whole image, and
        of the band along borders. 1 KB an image with 21 classes.
    """

    confusion: ConfusionMatrix
    images: torch.Tensor


def score_split(predictor: Predictor, shards: Shards, rank: Rank, border_width: int) -> Counts:
    """Count every image of the shards once, at its own size. Every worker returns the counts of all workers.

    Each worker takes every world-size-th image. Workers communicate once, after the last image, so shares may differ
    in the number and size of images.

    border_width: of the band along borders, in pixels; see fcn.metrics.trimap.
    """
    num_classes = len(predictor.classes)
    if len(shards) == 0:
        raise ShardError(f"{shards.folder} holds no image to evaluate on")
    shards.require_classes(predictor.classes, predictor.name)
    confusion = ConfusionMatrix(num_classes, rank.device)
    # Kept on the device, so that the next image does not wait for these counts
    images = torch.zeros(len(shards), 2, 3, num_classes, dtype=torch.int64, device=rank.device)
    indices = range(rank.number, len(shards), rank.world_size)
    with bar(len(indices), "evaluate") if rank.is_first else nullcontext() as progress:
        for index, sample in zip(indices, Dataset(shards).read_ahead(indices), strict=True):
            prediction, label = predictor.predict(sample.image), sample.label.to(rank.device)
            whole = ConfusionMatrix(num_classes, rank.device).update(prediction, label)
            border = ConfusionMatrix(num_classes, rank.device).update(prediction, trimap(label, border_width))
            images[index, 0], images[index, 1] = whole.per_class(), border.per_class()
            confusion.add(whole)
            if progress:
                progress.update()
    total = ConfusionMatrix(num_classes, rank.device).merge(rank.all_reduce(confusion.hist))
    return Counts(total, rank.all_reduce(images))


@dataclass(frozen=True)
class ScoreJob:
    """The work of one worker.

    counts: the .npz file to which the first worker writes the counts of all.
    cache: the folder that records which shards are intact, as open_shards takes it.
    """

    model: Path
    shards: Path
    counts: Path
    border_width: int
    averaging: Averaging = ONCE
    node_cache: NodeCache | None = None
    cache: Path | None = None


def score_worker(job: ScoreJob, rank: Rank) -> None:
    """Score this worker's share of a split; the first worker writes the counts of all."""
    model, about, _ = load_model(job.model, rank.device)
    predictor = Predictor(model, about["classes"], rank.device, job.averaging, name=str(job.model))
    shards = open_shards(job.shards, split="val", cache=job.cache, node_cache=job.node_cache)
    confusion, images = score_split(predictor, shards, rank, job.border_width)
    if rank.is_first:
        job.counts.parent.mkdir(parents=True, exist_ok=True)
        np.savez(job.counts, hist=confusion.hist.cpu().numpy(), images=images.cpu().numpy())


def score_on_workers(
    model: Path,
    shards: Path,
    folder: Path,
    border_width: int,
    averaging: Averaging = ONCE,
    node_cache: NodeCache | None = None,
    cache: Path | None = None,
    **workers: Any,
) -> Counts:
    """Return the counts of `score_split`, from Ray workers that each score a share.

    model, shards, folder: absolute, on a file system shared by all nodes.
    folder: of Ray's notes on the run; removed afterwards.
    cache: as open_shards takes it; absolute, too.
    workers: options of ray_workers.run_workers.
    """
    from pipeline.cluster import ray_workers  # takes seconds to import; one worker does not need Ray

    job = ScoreJob(model, shards, folder / "counts.npz", border_width, averaging, node_cache, cache)
    try:
        ray_workers.run_workers(
            score_worker, job, name=folder.name, storage=folder.parent, max_failures=0, **workers
        )
        with np.load(job.counts) as counts:
            hist, images = torch.from_numpy(counts["hist"]), torch.from_numpy(counts["images"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Counts(ConfusionMatrix(len(hist)).merge(hist), images)


def as_json(
    scores: Scores, classes: Sequence[str], num_images: int, averaging: Averaging = ONCE
) -> dict[str, Any]:
    """Return scores for JSON: NaN as null, those of each class by name, and how they were found.

    num_classes_scored: the classes that mean IU is the mean of; the others are in neither truth nor prediction.
    averaging: null if each image was scored once, at its own size.
    """
    values: dict[str, Any] = {}
    for key, score in asdict(scores).items():
        by_class = isinstance(score, tuple)
        values[key] = dict(zip(classes, map(_number, score), strict=True)) if by_class else _number(score)
    return values | {
        "num_classes_scored": sum(value is not None for value in values["class_iu"].values()),
        "num_images": num_images,
        "averaging": None if averaging.is_none else asdict(averaging),
    }


def with_uncertainty(images: PerImage, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return intervals of scores, the scores along borders, and the digest of the images, for JSON.

    NAME_low and NAME_high bound NAME; all are null if nothing could be scored.
    """
    values: dict[str, Any] = {
        "border_mean_iu": _number(float(mean_iu(images.border.sum(0)))),
        "border_width": images.about["border_width"],
    }
    statistics = {
        "mean_iu": lambda counts: mean_iu(counts[..., 0, :, :]),
        "mean_f1": lambda counts: mean_f1(counts[..., 0, :, :]),
        "pixel_acc": lambda counts: pixel_acc(counts[..., 0, :, :]),
        "border_mean_iu": lambda counts: mean_iu(counts[..., 1, :, :]),
    }
    for name, bounds in intervals(statistics, images.counts, bootstrap).items():
        values |= {f"{name}_low": _number(bounds.low), f"{name}_high": _number(bounds.high)}
    return values | {
        "level": bootstrap.level,
        "convention": "reference",
        "keys_sha256": digest_of_keys(images.keys),
    }


def as_metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return the JSON's numbers by their MLflow names: mean_iu ... and iu/<class>, f1/<class>. Nulls are left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("class_"):
            flat |= {f"{key.removeprefix('class_')}/{name}": score for name, score in value.items()}
        else:
            flat[key] = value
    return {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
