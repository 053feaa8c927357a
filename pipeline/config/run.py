"""The sections of a profile that decide no weights: Run, the behaviour of a run, and Evaluate, the scoring."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.config.section import (
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    Scale,
    Section,
    Seed,
)


def _checked_folder(folder: str) -> str:
    if not folder.startswith(("/", "~")):
        raise ValueError(
            "must begin with / or ~: a worker on a node has another current folder than the command that started it"
        )
    return folder


class Cache(Section):
    """A node's cache of shards in a store (docs/object-storage.md). Runs share it; local folders do not need it.

    folder: an absolute path, or one from ~, on a disk of the node; None: ~/.cache/fcn.
    gigabytes: the most that it holds, with 10**9 bytes each.
    connections: requests to the store at a time.
    patience_s: seconds to wait for a store that does not answer before the run ends.
    """

    folder: Annotated[PathText, AfterValidator(_checked_folder)] | None = None
    gigabytes: PositiveFloat = 50.0
    connections: PositiveInt = 16
    patience_s: PositiveFloat = 180.0


class Run(Section):
    """The behaviour of a run. These keys do not affect results; changing them reruns nothing.

    cpus_per_worker: CPUs that each worker reserves.
    min_workers: the number of workers with which training starts and continues while a cluster lacks room for all of
        train.num_workers; None: all.
    loader_workers: processes that load images ahead for each worker.
    log_every: iterations between two points of the curves.
    log_every_s: seconds between two lines on the terminal.
    checkpoint_every: iterations between two checkpoints.
    validate_every: iterations between two scores on validation images; 0: never. Replaced by train.validate_every.
    validate_images: the number of these images, the first of data.tuning, else of val. Replaced likewise.
    max_failures: how often a run restarts from its last checkpoint after a worker died.
    shard_workers: processes that write shards; 1: this process, without Ray, whose start takes seconds.
    verify_shards: before the first step, "full" reads every byte of the shards, "cached" only of shards that changed
        since they were last verified. In a store "cached" reads none: its blocks are verified when they arrive.
    cache: each node's cache of shards in a store.
    """

    cpus_per_worker: PositiveInt = 1
    min_workers: PositiveInt | None = None
    loader_workers: NonNegativeInt = 0
    log_every: PositiveInt
    log_every_s: Annotated[float, Field(ge=0)] = 5.0
    checkpoint_every: PositiveInt
    validate_every: NonNegativeInt = 0
    validate_images: PositiveInt = 100
    max_failures: NonNegativeInt = 2
    shard_workers: PositiveInt = 1
    verify_shards: Literal["cached", "full"] = "cached"
    cache: Cache = Cache()


def _checked_distinct(numbers: list[float]) -> list[float]:
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"must differ from each other, got {numbers}")
    return numbers


class Evaluate(Section):
    """The evaluation.

    num_figures: images drawn beside label and prediction, for each of: spread over the split, worst, best.
    num_gallery: images that the report's page shows, for all nets, with confidence and error.
    num_workers: Ray workers that share the images; 1: this process, without Ray.
    use_gpu: whether each worker has a GPU.
    border_width: pixels on either side of a border that are scored separately.
    scales: factors of the image's height and width whose probabilities are averaged ("MS" in published tables).
    flip: whether the mirror image is averaged as well. The paper scores each image once, at its own size.
    num_resamples: of the bootstrap over images that gives each score's interval.
    level: share of the resamples within the interval.
    seed: of the resamples.
    """

    num_figures: Annotated[int, Field(gt=0, le=100)] = 6
    num_gallery: Annotated[int, Field(gt=0, le=60)] = 24
    num_workers: PositiveInt = 1
    use_gpu: bool = False
    border_width: Annotated[int, Field(gt=0, le=100)] = 5
    scales: Annotated[list[Scale], Field(min_length=1, max_length=16), AfterValidator(_checked_distinct)] = [
        1.0
    ]
    flip: bool = False
    num_resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    level: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    seed: Seed = 0
