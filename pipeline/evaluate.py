"""Scoring a model on a split, and the JSON the numbers live in."""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn.metrics import ConfusionMatrix, Scores
from fcn.model import FCN
from pipeline.errors import CheckpointError, ShardError
from pipeline.model_file import load_model
from pipeline.place import Place
from pipeline.progress import bar
from pipeline.samples import Samples
from pipeline.shards import Shards, open_shards


@torch.inference_mode()
def predict(model: FCN, image: torch.Tensor) -> torch.Tensor:
    """image: (N, 3, H, W) uint8 on the model's device -> (N, H, W) int64, each pixel's best class."""
    return model(image).argmax(1)


def score_split(model: FCN, shards: Shards, place: Place) -> ConfusionMatrix:
    """One confusion matrix over every image of the shards, each seen once, by one worker, and at its own size.

    Every worker takes each world-th image; the matrix is the same, summed over all, on every worker. They meet only
    for that, when each has done its share, so that it does not matter if one has more or larger images.
    """
    if len(shards) == 0:
        raise ShardError(f"{shards.folder} holds no image to evaluate on")
    if model.num_classes != len(shards.classes):
        raise CheckpointError(
            f"the model tells {model.num_classes} classes apart, {shards.folder} has {len(shards.classes)}"
        )
    confusion = ConfusionMatrix(model.num_classes, place.device)
    samples, share = Samples(shards), range(place.rank, len(shards), place.world)
    with bar(len(share), "evaluate") if place.is_first else nullcontext() as progress:
        for index in share:
            image, label, _ = samples[index]
            confusion.update(predict(model, image.to(place.device)), label.to(place.device))
            if progress:
                progress.update()
    return ConfusionMatrix(model.num_classes, place.device).merge(place.total(confusion.hist))


@dataclass(frozen=True)
class ScoreJob:
    """All a worker has to know to score its share. counts: the file the first worker writes the summed matrix to."""

    model: Path
    shards: Path
    counts: Path


def score_worker(job: ScoreJob, place: Place) -> None:
    """Scores this worker's share of a split; the first writes what all counted."""
    model, _, _ = load_model(job.model, place.device)
    hist = score_split(model, open_shards(job.shards, split="val"), place).hist
    if place.is_first:
        write_json(job.counts, {"hist": hist.tolist()})


def score_on_workers(model: Path, shards: Path, folder: Path, **workers: Any) -> ConfusionMatrix:
    """What score_split gives, by Ray workers that each score a share; workers: of cluster.run_workers.

    model, shards, folder: absolute, shared by all nodes. folder: of what Ray notes on the way, emptied afterwards.
    """
    from pipeline import cluster  # Ray takes seconds to import, which one worker need not pay

    job = ScoreJob(model, shards, folder / "counts.json")
    try:
        cluster.run_workers(
            score_worker, job, name=folder.name, storage=folder.parent, max_failures=0, **workers
        )
        hist = torch.tensor(json.loads(job.counts.read_text(encoding="utf-8"))["hist"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ConfusionMatrix(len(hist)).merge(hist)


def as_json(scores: Scores, classes: Sequence[str], num_images: int) -> dict[str, Any]:
    """Scores as JSON holds them: nan becomes null, class_iu goes by name."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    values = {key: number(value) for key, value in asdict(scores).items() if key != "class_iu"}
    class_iu = {name: number(value) for name, value in zip(classes, scores.class_iu, strict=True)}
    return values | {"class_iu": class_iu, "num_images": num_images}


def as_metrics(values: dict[str, Any]) -> dict[str, float]:
    """The JSON's numbers under MLflow's names: mean_iu ... and iu/<class>; what could not be scored is left out."""
    flat = {key: value for key, value in values.items() if key != "class_iu"}
    flat |= {f"iu/{name}": value for name, value in values["class_iu"].items()}
    return {key: float(value) for key, value in flat.items() if value is not None}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def figure_samples(
    model: FCN, shards: Shards, num: int, device: torch.device
) -> list[tuple[str, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]:
    """(key, image (H, W, 3), label (H, W), prediction (H, W)) of `num` samples spread evenly over the split."""
    samples, chosen = Samples(shards), np.linspace(0, len(shards) - 1, min(num, len(shards)), dtype=int)
    rows = []
    for index in chosen.tolist():
        image, label, (key,) = samples[index]
        prediction = predict(model, image.to(device))[0].to("cpu", torch.uint8)
        rows.append((key, image[0].permute(1, 2, 0).numpy(), label[0].numpy(), prediction.numpy()))
    return rows
