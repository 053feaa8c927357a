"""The sections of a profile about networks: what they are, how they learn, how they are scored."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.data import Archive
from pipeline.config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section, Seed

Scale = Annotated[float, Field(ge=0.1, le=10)]
Side = Annotated[int, Field(gt=0, le=4096)]
Strength = Annotated[float, Field(ge=0, le=1)]


class Model(Section):
    """What fcn.FCN takes besides num_classes and stride; those from `width` on are options some backbones have."""

    backbone: str
    padding: Literal["reference", "tight"] = "reference"
    learn_upscore: Literal[False, "intermediate", True] = False
    at_once: bool = False
    fusion: Literal["sum", "max"] = "sum"
    score_init: Literal["zero", "random"] = "zero"
    fixed_trunk: bool = False
    width: PositiveFloat | None = None
    batch_norm: bool | None = None
    fc6_kernel: Annotated[int, Field(gt=0, lt=16)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    pixels: Literal["caffe", "torchvision", "inception"] | None = None

    def arguments(self) -> dict[str, Any]:
        """FCN's keyword arguments: an option that is not given is the backbone's own default."""
        return self.model_dump(exclude_none=True)


class Backbone(Section):
    """What the chain begins from: published weights, or, without them, random ones from the seed."""

    weights: Archive | None = None
    seed: Seed = 0


class Optimizer(Section):
    """How parameters move.

    trunk_lr_factor: of the backbone's rate, beside that of the score layers: what is learned already moves less.
    """

    name: Literal["sgd", "adamw"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)]
    trunk_lr_factor: Annotated[float, Field(gt=0)] = 1.0


class Transforms(Section):
    """What is drawn anew for every image a step takes; without this section, nothing, as in the paper.

    mirror: every second image, left for right.   jitter: shift by up to so many pixels each way (the paper tried 32).
    scale: least and greatest factor of the sides, uniform in its logarithm.   crop: height and width of a window
    anywhere in the (scaled) image; where the image is smaller, black with a void label.   brightness, contrast,
    saturation: s for factors from 1 - s to 1 + s.   hue: shift by up to this part of the circle; costs the most time.
    """

    mirror: bool = False
    jitter: Annotated[int, Field(ge=0, le=32)] = 0
    scale: tuple[Scale, Scale] = (1.0, 1.0)
    crop: tuple[Side, Side] | None = None
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _has_pairs(cls, values: Any) -> Any:
        """YAML knows lists only."""
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    @model_validator(mode="after")
    def _has_a_range(self) -> "Transforms":
        least, greatest = self.scale
        if least > greatest:
            raise ValueError(f"scale must be [least, greatest], got [{least}, {greatest}]")
        return self


class Exchange(Section):
    """How workers average gradients; what they send is nothing but time, unless compression rounds it.

    compression: of what is sent; "powersgd" to two matrices of powersgd_rank a weight, after powersgd_after steps.
    bucket_mb: how much is sent at a time.
    """

    compression: Literal["none", "bf16", "powersgd"] = "none"
    bucket_mb: PositiveInt = 25
    powersgd_rank: PositiveInt = 2
    powersgd_after: Annotated[int, Field(ge=2)] = 1000


class Train(Section):
    """What the nets of a chain share.

    batch_size: images a step over all workers.   accumulation: inner steps it is taken in, to save memory (iter_size).
    loss: "sum" over pixels, as the reference, "mean" over the step's valid ones, or "image_mean": over each image's.
    batch_rule: lr, momentum and iterations are those of one image a step; follow that run with batch_size images.
    sampling: "epochs" shuffles, "replacement" draws uniformly as the reference does.   schedule: of lr over the run.
    size_buckets: a step takes images of one size, so that none is padded; sizes rarer than batch_size share a bucket.
    num_workers: processes, a GPU each if use_gpu.   precision: of the forward pass; bfloat16 wants hardware for it,
    "auto" takes it on a GPU that has it.   batch_norm: statistics of each worker's images ("local"), of all workers'
    ("sync"), or those the net came with ("frozen").
    class_balancing: weigh each class's pixels inversely to its share.   sample_pixels: the share of pixels, drawn anew
    each step, that the loss counts. The paper tried both and found no gain.
    """

    num_workers: PositiveInt
    use_gpu: bool = False
    batch_size: PositiveInt
    accumulation: PositiveInt = 1
    batch_rule: bool = False
    loss: Literal["sum", "mean", "image_mean"]
    optimizer: Optimizer
    schedule: Literal["fixed", "poly"] = "fixed"
    sampling: Literal["epochs", "replacement"] = "epochs"
    size_buckets: bool = False
    transforms: Transforms = Transforms()
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    class_balancing: bool = False
    sample_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    exchange: Exchange = Exchange()
    seed: Seed

    @model_validator(mode="after")
    def _divides_evenly(self) -> "Train":
        if self.batch_size % (self.num_workers * self.accumulation):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_workers {self.num_workers} times "
                f"accumulation {self.accumulation}, so that every worker takes as many images at a time"
            )
        return self

    @model_validator(mode="after")
    def _has_a_rule_to_follow(self) -> "Train":
        if self.batch_rule and self.optimizer.name != "sgd":
            raise ValueError(
                f"batch_rule is one of sgd with momentum; optimizer.name is {self.optimizer.name}"
            )
        return self

    @model_validator(mode="after")
    def _has_buckets_for_a_reason(self) -> "Train":
        if self.size_buckets and (self.transforms.crop or self.transforms.scale != (1.0, 1.0)):
            raise ValueError(
                "size_buckets are of no use with transforms.crop, which makes all sizes one, or with "
                "transforms.scale, which makes them all differ; leave out one of them"
            )
        return self


class Run(Section):
    """How it runs, without a say in the result: a change of these does nothing anew.

    min_workers: with how many of train.num_workers training begins, and goes on, while a cluster has no room for all.
    loader_workers: processes that read ahead for each worker.   max_failures: how often a run starts again from its
    last checkpoint after a worker died.   log_every, checkpoint_every, validate_every: in iterations; of a point of
    the curves, a checkpoint, and scores on the first validate_images of the validation split (0: never).
    log_every_s: seconds between two lines on the terminal.
    shard_workers: processes that write shards; 1: without Ray, whose start costs seconds.
    verify_shards: before the first step, "full" reads every byte, "cached" only what was not found whole before.
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


class Net(Section):
    lr: PositiveFloat
    iterations: PositiveInt


class Nets(Section):
    fcn32s: Net
    fcn16s: Net
    fcn8s: Net


def _refuse_repeated(numbers: list[float]) -> list[float]:
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"must differ from each other, got {numbers}")
    return numbers


class Evaluate(Section):
    """num_figures: images drawn beside label and prediction: so many spread over the split, as many worst and best.
    num_gallery: images that the report's page shows, of all nets, with confidence and error.

    num_workers: Ray workers that share the images, a GPU each if use_gpu; 1: this process alone, without Ray.
    border_width: pixels on either side of a border that are scored by themselves, too.
    scales, flip: average the probabilities over these sizes of each image, and over its mirror image too, as published
    tables with "MS" and "flip" do; by default each image is scored once, at its own size, as in the paper.
    num_resamples, level, seed: of the interval that the bootstrap over images gives with a score.
    """

    num_figures: Annotated[int, Field(gt=0, le=100)] = 6
    num_gallery: Annotated[int, Field(gt=0, le=60)] = 24
    num_workers: PositiveInt = 1
    use_gpu: bool = False
    border_width: Annotated[int, Field(gt=0, le=100)] = 5
    scales: Annotated[list[Scale], Field(min_length=1, max_length=16), AfterValidator(_refuse_repeated)] = [
        1.0
    ]
    flip: bool = False
    num_resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    level: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    seed: Seed = 0
