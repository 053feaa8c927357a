"""Scoring a model on a split, and the JSON the numbers live in."""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fcn.averaging import Averaging, average_probability
from fcn.metrics import ConfusionMatrix, Scores, best_class, trimap
from fcn.model import FCN
from pipeline.distributed.rank import Rank
from pipeline.errors import CheckpointError, ShardError
from pipeline.evaluation.bootstrap import Bootstrap, interval, mean_iu, pixel_acc
from pipeline.evaluation.per_image import PerImage, digest_of_keys
from pipeline.models.model_file import load_model
from pipeline.progress import bar
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards, open_shards

ONCE = Averaging()  # as the paper: each image once, at its own size


@torch.inference_mode()
def predict(model: FCN, image: torch.Tensor, averaging: Averaging = ONCE) -> torch.Tensor:
    """image: (N, 3, H, W) uint8 on the model's device -> (N, H, W) int64, each pixel's best class."""
    score = model(image) if averaging.is_none else average_probability(model, image, averaging)
    return best_class(score)


class Counts(NamedTuple):
    """What was counted on a split.

    confusion: over all pixels.   images: (N, 2, 3, C) int64, in the shards' order: of each image, whole and along its
    borders alone, what ConfusionMatrix.per_class gives; 1 KB an image with 21 classes.
    """

    confusion: ConfusionMatrix
    images: torch.Tensor


def score_split(
    model: FCN, shards: Shards, rank: Rank, border_width: int, averaging: Averaging = ONCE
) -> Counts:
    """Counts over every image of the shards, each seen once, by one worker, and at its own size.

    border_width: of fcn.metrics.trimap. Every worker takes each world-th image; the counts are the same, of all, on
    every worker. They meet only for that, when each has done its share, so that it does not matter if one has more or
    larger images.
    """
    if len(shards) == 0:
        raise ShardError(f"{shards.folder} holds no image to evaluate on")
    if model.num_classes != len(shards.classes):
        raise CheckpointError(
            f"the model tells {model.num_classes} classes apart, {shards.folder} has {len(shards.classes)}"
        )
    confusion = ConfusionMatrix(model.num_classes, rank.device)
    # On the device, so that no image waits for the one before it to be counted
    images = torch.zeros(len(shards), 2, 3, model.num_classes, dtype=torch.int64, device=rank.device)
    dataset, share = Dataset(shards), range(rank.number, len(shards), rank.world_size)
    with bar(len(share), "evaluate") if rank.is_first else nullcontext() as progress:
        for index, (image, label, _) in zip(share, dataset.read_ahead(share), strict=True):
            prediction, label = predict(model, image.to(rank.device), averaging), label.to(rank.device)
            for part, pixels in enumerate((label, trimap(label, border_width))):
                counted = ConfusionMatrix(model.num_classes, rank.device).update(prediction, pixels)
                images[index, part] = counted.per_class()
                if pixels is label:
                    confusion.add(counted)
            if progress:
                progress.update()
    total = ConfusionMatrix(model.num_classes, rank.device).merge(rank.all_reduce(confusion.hist))
    return Counts(total, rank.all_reduce(images))


@dataclass(frozen=True)
class ScoreJob:
    """All a worker has to know to score its share. counts: the .npz file the first worker writes the sums to."""

    model: Path
    shards: Path
    counts: Path
    border_width: int
    averaging: Averaging = ONCE


def score_worker(job: ScoreJob, rank: Rank) -> None:
    """Scores this worker's share of a split; the first writes what all counted."""
    model, _, _ = load_model(job.model, rank.device)
    shards = open_shards(job.shards, split="val")
    confusion, images = score_split(model, shards, rank, job.border_width, job.averaging)
    if rank.is_first:
        job.counts.parent.mkdir(parents=True, exist_ok=True)
        np.savez(job.counts, hist=confusion.hist.cpu().numpy(), images=images.cpu().numpy())


def score_on_workers(
    model: Path, shards: Path, folder: Path, border_width: int, averaging: Averaging = ONCE, **workers: Any
) -> Counts:
    """What score_split gives, by Ray workers that each score a share; workers: of cluster.run_workers.

    model, shards, folder: absolute, shared by all nodes. folder: of what Ray notes on the way, emptied afterwards.
    """
    from pipeline.cluster import ray_workers  # Ray takes seconds to import, which one worker need not pay

    job = ScoreJob(model, shards, folder / "counts.npz", border_width, averaging)
    try:
        ray_workers.run_workers(
            score_worker, job, name=folder.name, storage=folder.parent, max_failures=0, **workers
        )
        with np.load(job.counts) as counts:
            hist, images = torch.from_numpy(counts["hist"]), torch.from_numpy(counts["images"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Counts(ConfusionMatrix(len(hist)).merge(hist), images)


def as_json(scores: Scores, classes: Sequence[str], num_images: int) -> dict[str, Any]:
    """Scores as JSON holds them: nan becomes null, class_iu goes by name.

    num_classes_scored: of how many classes mean IU is the mean; the others are in neither truth nor prediction.
    """
    values = {key: _number(value) for key, value in asdict(scores).items() if key != "class_iu"}
    class_iu = {name: _number(value) for name, value in zip(classes, scores.class_iu, strict=True)}
    num_scored = sum(value is not None for value in class_iu.values())
    return values | {"class_iu": class_iu, "num_classes_scored": num_scored, "num_images": num_images}


def about_averaging(averaging: Averaging) -> dict[str, Any]:
    """What the JSON says of it: `averaging`, null if each image was scored once, at its own size."""
    said = None if averaging.is_none else {"scales": list(averaging.scales), "flip": averaging.flip}
    return {"averaging": said}


def with_uncertainty(images: PerImage, bootstrap: Bootstrap) -> dict[str, Any]:
    """What the JSON says besides: intervals of mean IU and pixel accuracy, the scores along borders, what images.

    NAME_low and NAME_high bound NAME; all are null if nothing could be scored.
    """
    border_iu = float(mean_iu(images.border.sum(0)))
    values: dict[str, Any] = {
        "border_mean_iu": _number(border_iu),
        "border_width": images.about["border_width"],
    }
    for name, statistic, counts in (
        ("mean_iu", mean_iu, images.whole),
        ("pixel_acc", pixel_acc, images.whole),
        ("border_mean_iu", mean_iu, images.border),
    ):
        found = interval(statistic, counts, bootstrap)
        values |= {f"{name}_low": _number(found.low), f"{name}_high": _number(found.high)}
    return values | {
        "level": bootstrap.level,
        "convention": "reference",
        "keys_sha256": digest_of_keys(images.keys),
    }


def as_metrics(values: dict[str, Any]) -> dict[str, float]:
    """The JSON's numbers under MLflow's names: mean_iu ... and iu/<class>; what could not be scored is left out."""
    flat = {key: value for key, value in values.items() if key != "class_iu"}
    flat |= {f"iu/{name}": value for name, value in values["class_iu"].items()}
    return {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
