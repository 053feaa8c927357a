"""Jobs of tiny nets, and jobs with some settings changed by their bare names."""

import dataclasses
from pathlib import Path
from typing import Any

from pipeline.config.job import Job
from pipeline.config.run import Run
from pipeline.config.training import Net, Optimizer, Train
from pipeline.datasets.synthetic import CLASSES

TINY = {
    "backbone": "vgg16",
    "padding": "tight",
    "width": 1 / 64,
    "fc6_kernel": 3,
    "dropout": 0.5,
    "pixels": "torchvision",
}


def tiny_job(shards: Path, validation: Path, **changes: Any) -> Job:
    """An FCN-32s on the sample's classes, two images a step, eight steps; a point of the curve every step."""
    standard = Job(
        identity="tiny",
        net="fcn32s",
        model=TINY | {"num_classes": len(CLASSES), "stride": 32},
        classes=CLASSES,
        train=Train(
            num_workers=1,
            batch_size=2,
            loss="mean",
            optimizer=Optimizer(name="sgd", momentum=0.9, weight_decay=5e-4),
            seed=5,
        ),
        run=Run(log_every=1, log_every_s=0.0, checkpoint_every=3, validate_images=3),
        recipe=Net(lr=0.01, iterations=8),
        parent=Path(),
        shards=shards,
        validation=validation,
        folder=Path(),
        lineage={"net": "fcn32s", "chain": "tiny"},
    )
    return changed(standard, **changes)


def changed(job: Job, **changes: Any) -> Job:
    """The job with other values of Job's fields, or of keys of its sections. `optimizer` is the optimizer's name."""
    sections: dict[str, dict[str, Any]] = {"optimizer": {}, "train": {}, "run": {}, "recipe": {}}
    rest = {}
    for key, value in changes.items():
        if key == "optimizer":
            sections["optimizer"]["name"] = value
        elif key in Optimizer.model_fields:
            sections["optimizer"][key] = value
        elif key in Train.model_fields:
            sections["train"][key] = value
        elif key == "run_cache":  # `cache` is Job's
            sections["run"]["cache"] = value
        elif key in Run.model_fields and key != "cache":
            sections["run"][key] = value
        elif key in Net.model_fields:
            sections["recipe"][key] = value
        else:
            rest[key] = value
    optimizer = job.train.optimizer.model_copy(update=sections["optimizer"])
    return dataclasses.replace(
        job,
        train=job.train.model_copy(update=sections["train"] | {"optimizer": optimizer}),
        run=job.run.model_copy(update=sections["run"]),
        recipe=job.recipe.model_copy(update=sections["recipe"]),
        **rest,
    )
