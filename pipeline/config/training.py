"""The sections of a profile about the recipe: Train and Nets."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from pipeline.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    Scale,
    Section,
    Seed,
)

Side = Annotated[int, Field(gt=0, le=4096)]
Strength = Annotated[float, Field(ge=0, le=1)]


class Optimizer(Section):
    """The optimizer.

    name: "sgd" or "adamw".
    momentum: of sgd.
    weight_decay: of weights; biases and the vectors of batch norm do not decay.
    trunk_lr_factor: factor of the backbone's learning rate, below 1 where it is pretrained.
    """

    name: Literal["sgd", "adamw"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)]
    trunk_lr_factor: PositiveFloat = 1.0


class Transforms(Section):
    """The random changes of each training image; the defaults change nothing, as in the paper.

    mirror: whether every second image, on average, is mirrored left to right.
    jitter: largest shift in each direction, in pixels (the paper tried 32).
    scale: least and greatest factor of height and width; uniform in its logarithm.
    crop: height and width of a window anywhere in the scaled image, in pixels. Beyond a smaller image the window is
        black, and void in the label.
    brightness, contrast, saturation: s for a factor of 1 - s to 1 + s.
    hue: largest shift, as a part of the circle; the slowest of the transforms.
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
        """Turn YAML's lists into tuples, which strict types require."""
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    @model_validator(mode="after")
    def _has_a_range(self) -> "Transforms":
        least, greatest = self.scale
        if least > greatest:
            raise ValueError(f"scale must be [least, greatest], got [{least}, {greatest}]")
        return self


class Terms(Section):
    """The weights of the loss's terms, of which the loss is the sum; see fcn.loss. One that is not given is 0.

    cross_entropy: the paper's loss.
    focal: lets pixels that are easy count little.
    dice: of each image, counts each class in its label the same, however few its pixels.
    """

    cross_entropy: NonNegativeFloat = 0.0
    focal: NonNegativeFloat = 0.0
    dice: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _has_a_term(self) -> "Terms":
        if not any(self.model_dump().values()):
            raise ValueError(
                f"one of {', '.join(type(self).model_fields)} must be above 0; otherwise the loss is always 0"
            )
        return self


def _checked_class_weights(value: Any) -> Any:
    """Refuse anything else with one message; pydantic has one for each kind."""
    is_by_class = isinstance(value, dict) and all(
        isinstance(name, str) and type(weight) in (int, float) and 0 < weight < math.inf
        for name, weight in value.items()
    )
    if not is_by_class and value not in ("none", "inverse"):
        raise ValueError(
            f"must be none, inverse, or a number above 0 for some classes, such as {{person: 2.0}}, got {value!r}"
        )
    return value


ClassWeights = Annotated[
    Literal["none", "inverse"] | dict[str, float], BeforeValidator(_checked_class_weights)
]


class Exchange(Section):
    """The exchange of gradients between workers.

    compression: "none", or "bf16", which rounds each gradient to 8 significant bits to halve the bytes sent.
    bucket_mb: MiB of gradients sent at a time; affects speed only.
    """

    compression: Literal["none", "bf16"] = "none"
    bucket_mb: PositiveInt = 25


class Train(Section):
    """The part of the recipe that all nets of a chain share.

    num_workers: worker processes.
    use_gpu: whether each worker has a GPU.
    batch_size: images per step, over all workers.
    accumulation: inner steps that a step's images are split into, to save memory (Caffe's iter_size).
    batch_rule: lr, momentum, warmup and iterations are those of one image per step; they are converted for batch_size
        images.
    loss: "sum" over pixels as in the reference release, "mean" over the step's valid pixels, or "image_mean": over each
        image's valid pixels, then over images.
    terms: the terms that the loss of a pixel is the sum of.
    focal_gamma: the exponent of the focal term: 0 is cross entropy, the higher the less easy pixels count.
    label_smoothing: the share of cross entropy's target that is spread evenly over all classes.
    class_weights: the factor of each class's pixels in cross entropy and focal: "none"; "inverse" to the class's share
        of the training pixels, 1 on average; or by class, 1 if not named. The paper found no gain.
    optimizer: the optimizer.
    start: a model file of this project, of the same model section but any stride and classes. The nets start from its
        layers instead of from `backbone`; classes are matched by name.
    schedule: of the learning rate, "fixed", "poly", "cosine" or "cooldown"; see fcn.optim.learning_rate.
    warmup: the first steps, in which the rate rises from near 0.
    cooldown: with schedule cooldown, the last share of the steps, in which the rate falls to 0.
    sampling: "epochs" shuffles; "replacement" draws uniformly, as the reference does.
    order: "samples" shuffles all samples. "blocks" shuffles blocks of samples, and samples within some blocks: for
        shards in a store that are larger than run.cache.
    size_buckets: a step takes images of one size, so that none is padded. Sizes rarer than batch_size share a bucket.
    transforms: random changes of the images.
    precision: of the forward pass. "auto" is "bfloat16" on GPUs, and on CPUs with AVX512-BF16 or AMX, if
        every worker has such a device; else "float32". Without such hardware "bfloat16" is slow.
    batch_norm: the images whose statistics normalise: each worker's ("local"), all workers' ("sync", on GPUs), or
        those the net started with ("frozen").
    sample_pixels: the share of pixels, drawn in every step, that the loss counts. The paper found no gain.
    exchange: the exchange of gradients.
    seed: of every random draw in training.
    ema: decay of the averaged copy of the weights, which is then what is validated and kept; 0: no copy.
    keep: the "last" net, as in the paper, or the "best" one by `best_by`.
    best_by: "mean_iu" or "loss" on validation images, or "iu/<class>".
    patience: validations without a gain in `best_by` after which a net stops early; 0: never.
    validate_every, validate_images: in place of those of `run` where keep best or patience go by the scores.
    """

    num_workers: PositiveInt
    use_gpu: bool = False
    batch_size: PositiveInt
    accumulation: PositiveInt = 1
    batch_rule: bool = False
    loss: Literal["sum", "mean", "image_mean"]
    terms: Terms = Terms(cross_entropy=1.0)
    focal_gamma: NonNegativeFloat = 2.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: ClassWeights = "none"
    optimizer: Optimizer
    start: PathText | None = None
    schedule: Literal["fixed", "poly", "cosine", "cooldown"] = "fixed"
    warmup: NonNegativeInt = 0
    cooldown: Annotated[float, Field(gt=0, le=1)] | None = None
    sampling: Literal["epochs", "replacement"] = "epochs"
    order: Literal["samples", "blocks"] = "samples"
    size_buckets: bool = False
    transforms: Transforms = Transforms()
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    sample_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    exchange: Exchange = Exchange()
    seed: Seed
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    keep: Literal["last", "best"] = "last"
    best_by: Annotated[str, StringConstraints(pattern=r"^(mean_iu|loss|iu/.+)$")] = "mean_iu"
    patience: NonNegativeInt = 0
    validate_every: PositiveInt | None = None
    validate_images: PositiveInt = 100

    @property
    def chooses(self) -> bool:
        """Whether scores on validation images decide which net is kept, or when it stops."""
        return self.keep == "best" or self.patience > 0

    @model_validator(mode="after")
    def _fits_together(self) -> "Train":
        if self.batch_size % (self.num_workers * self.accumulation):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_workers {self.num_workers} times "
                f"accumulation {self.accumulation}, so that every worker takes as many images at a time"
            )
        if (self.schedule == "cooldown") != (self.cooldown is not None):
            raise ValueError(
                "schedule cooldown and the key cooldown, such as 0.2 of the steps, are given together or not at all; "
                f"got schedule {self.schedule} and cooldown {self.cooldown}"
            )
        if self.batch_rule and self.optimizer.name != "sgd":
            raise ValueError(f"batch_rule is for optimizer.name sgd, got {self.optimizer.name}")
        if self.optimizer.momentum != 0.9 and self.optimizer.name != "sgd":
            raise ValueError(
                f"optimizer.momentum has no effect with optimizer.name {self.optimizer.name}; leave it out"
            )
        if self.size_buckets and (self.transforms.crop or self.transforms.scale != (1.0, 1.0)):
            raise ValueError(
                "size_buckets has no effect with transforms.crop, which makes all sizes equal, or with "
                "transforms.scale, which makes all sizes differ; leave out one of them"
            )
        if self.label_smoothing and not self.terms.cross_entropy:
            raise ValueError(
                "label_smoothing has no effect without terms.cross_entropy; leave it out, or add the term"
            )
        if self.focal_gamma != 2 and not self.terms.focal:
            raise ValueError("focal_gamma has no effect without terms.focal; leave it out, or add the term")
        if self.class_weights != "none" and not (self.terms.cross_entropy or self.terms.focal):
            raise ValueError(
                "class_weights has no effect on terms.dice, which counts all classes the same; leave it out"
            )
        if self.order == "blocks" and (self.sampling != "epochs" or self.size_buckets):
            raise ValueError("order blocks is for sampling epochs without size_buckets")
        if self.batch_norm == "sync" and not self.use_gpu:
            raise ValueError(
                "batch_norm sync needs use_gpu true, because torch synchronises batch norm on GPUs only; "
                "set batch_norm to local or frozen"
            )
        if self.chooses and self.validate_every is None:
            raise ValueError(
                "keep best and patience need validate_every, the iterations between two validations; "
                "run.validate_every does not count, because `run` decides no result"
            )
        if not self.chooses and (
            self.validate_every or self.best_by != "mean_iu" or self.validate_images != 100
        ):
            raise ValueError(
                "validate_every, validate_images and best_by have no effect without keep best or patience; leave them "
                "out (run.validate_every shows scores and decides nothing)"
            )
        return self


class Net(Section):
    """The recipe of one net.

    lr: learning rate of weights in the first step.
    iterations: the number of steps.
    """

    lr: PositiveFloat
    iterations: PositiveInt


class Nets(Section):
    """The recipes of the chain.

    fcn32s: starts from the backbone, or from `train.start`.
    fcn16s, fcn8s: start from the net before.
    """

    fcn32s: Net
    fcn16s: Net
    fcn8s: Net
