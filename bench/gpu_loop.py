"""Speed with data, on the GPU: the whole training loop from shards, and scoring a split beside the bare passes."""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu_result import Row
from bench.gpu_setup import Bench, medians, project, stopped_after
from bench.gpu_speed import Contestant, batch_of, batches, our_net, training
from fcn.model import FCN
from pipeline import paths
from pipeline.config.model import Model
from pipeline.config.training import Optimizer
from pipeline.curves import read_points
from pipeline.evaluation.scoring import score_split
from pipeline.models import backbone
from pipeline.models.predictor import Predictor
from pipeline.monitoring.meter import CURVES
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import open_shards
from pipeline.training.loop import train_worker

DATA_WAIT, EVALUATION_RATIO = 0.05, 1.1
ENDING_S = 12  # for the checkpoint of a run that is stopped, and what follows it
BORDER_WIDTH = 5  # the profiles' default
WARM_UP_POINTS = 5  # of the loop's curve: the first steps take batches that were read ahead


@torch.inference_mode()
def evaluation(bench: Bench) -> Iterator[Row]:
    """Scoring the validation photos beside the bare forward passes on the same photos, on the device already."""
    root, name, _ = project(bench, "evaluation")
    shards = open_shards(root / paths.shards(name, "val"), split="val")
    if bench.is_small:
        shards = dataclasses.replace(shards, table=shards.table.slice(0, 3))
    with bench.device:
        options: dict[str, Any] = {"width": 1 / 32, "fc6_kernel": 1} if bench.is_small else {}
        net = FCN(len(shards.classes), 8, padding="tight", score_init="random", **options).eval()
    dataset = Dataset(shards)
    images = [dataset[index].image.to(bench.device) for index in range(len(shards))]
    predictor = Predictor(net, shards.classes, bench.device)

    def bare() -> None:
        for image in images:
            net(image)

    works = {"scored": lambda: score_split(predictor, shards, bench.rank, BORDER_WIDTH), "bare": bare}
    seconds = medians(works, bench, 5, 0.6 * bench.left_s)
    note = f"{1e3 * seconds['scored'] / len(images):.2f} ms a photo, bare {1e3 * seconds['bare'] / len(images):.2f} ms"
    ratio, what = seconds["scored"] / seconds["bare"], f"evaluation of {len(images)} photos over bare passes"
    yield Row(what, ratio, "times", EVALUATION_RATIO, note=note)


def loop(bench: Bench) -> Iterator[Row]:
    """The whole training loop from shards: loader processes, augmentation, pinned copies, steps."""
    own = project(bench, "loop", has_backbone=False)
    options: dict[str, Any] = {"width": 1 / 32, "fc6_kernel": 1} if bench.is_small else {}
    model = Model(backbone="vgg16", padding="tight", at_once=True, **options)
    backbone.write_random(own.root / paths.model(own.name, "backbone"), model.arguments(), seed=0)
    num_loaders = 2 if bench.is_small else max(1, len(os.sched_getaffinity(0)) - 2)
    log_every = 2 if bench.is_small else 20
    made = own.job(
        "fcn8s",
        model=model,
        train={
            "batch_size": max(batches(bench)),
            "accumulation": 1,
            "precision": "auto",
            "loss": "mean",
            "optimizer": Optimizer(name="sgd", weight_decay=5e-4),
            "transforms": own.profile.train.transforms.model_copy(update={"crop": bench.image_size}),
        },
        run={"loader_workers": num_loaders, "log_every": log_every, "checkpoint_every": 10**6},
        recipe={"lr": 1e-5, "iterations": 6 if bench.is_small else 600},
    )
    with stopped_after(made, bench.left_s - ENDING_S):
        train_worker(made, bench.rank)
    points = [point.values for point in read_points(made.folder / CURVES)]
    points = points[1 if bench.is_small else WARM_UP_POINTS :]
    if not points:
        raise RuntimeError("its time was too short for a point of the curve after the start-up")
    note = f"{num_loaders} loader processes, batch {made.train.batch_size}, {len(points) * log_every} steps"
    speed = mean(points, "images_per_s")
    yield Row("the whole loop", speed, "images/s", note=note)
    yield Row("the whole loop: share of time that waits for data", mean(points, "data_wait"), "", DATA_WAIT)
    peak = max(point["memory_gb"] for point in points)
    yield Row("the whole loop: peak memory" if bench.is_cuda else "the process: peak memory", peak, "GB")
    image, label = batch_of(bench)
    bare = training(Contestant(our_net(bench), len(image)), image, label)
    step_s = medians({"step": bare}, bench, 10, 2)["step"]
    yield Row("the whole loop over bare steps on one batch", speed * step_s / len(image), "times")


def mean(points: list[dict[str, float]], name: str) -> float:
    return math.fsum(point[name] for point in points) / len(points)
