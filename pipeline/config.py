"""params.yaml names a profile; profiles/<name>.yaml holds its values. Read once, validated, frozen."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config_errors import complaint, sentence
from pipeline.errors import ConfigError
from pipeline.paths import CHAIN as CHAIN  # who reads a recipe wants its order, too

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")
STRIDE = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
Scale = Annotated[float, Field(ge=0.1, le=10)]
Side = Annotated[int, Field(gt=0, le=4096)]
Strength = Annotated[float, Field(ge=0, le=1)]
ArchiveName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
SplitName = Annotated[str, StringConstraints(pattern=r"^(voc20(07|11|12)|sbd|own)/[A-Za-z0-9_-]+$")]

URL_KINDS = ("https", "http", "file", "s3", "gs", "az", "hdfs")
_SECRET = re.compile(r"[?&][^=&]*(token|sig|secret|passw|credential|key)[^=&]*=", re.IGNORECASE)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Drawing(Section):
    """The sample data set: so many images of image_size x image_size pixels, drawn from a seed."""

    num_train: PositiveInt
    num_val: PositiveInt
    image_size: Annotated[int, Field(ge=48, le=1024)]
    seed: Seed


def _checked_url(url: str) -> str:
    """A profile's values end up in dvc.lock and MLflow, so no secret must be among them."""
    if "@" in url or url.partition("://")[0] not in URL_KINDS:
        raise ValueError(f"must be a URL of {', '.join(URL_KINDS)}, without user:password@")
    if _SECRET.search(url):
        raise ValueError(
            "must not hold a token or signature, which would end up in dvc.lock; use s3:// or gs:// with its keys in "
            "the environment, or put the file into downloads/ yourself"
        )
    if not _file_name(url):
        raise ValueError("must end in the name of a file")
    return url


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


Url = Annotated[str, AfterValidator(_checked_url)]


class Archive(Section):
    """A published archive: mirrors in the order to try, and a checksum "md5:..." or "sha256:...".

    allowed_hosts: other hosts a mirror may redirect to.
    """

    urls: Annotated[list[Url], Field(min_length=1)]
    checksum: Annotated[str, StringConstraints(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64})$")]
    max_size_gb: PositiveFloat = 4.0
    allowed_hosts: list[str] = []


class Split(Section):
    """Ids of the listed splits in order, the first with an id gives its label; then without those of `exclude`.

    count: how many there must be, where a number is published; not held with allow_partial.
    """

    include: Annotated[list[SplitName], Field(min_length=1)]
    exclude: list[SplitName] = []
    count: PositiveInt | None = None


class Splits(Section):
    train: Split
    val: Split


class Source(Section):
    """Where the images come from: exactly one of the four.

    local: a folder with VOCdevkit/ and benchmark_RELEASE/ as the archives unpack, or with the archives, or an archive.
    own: a folder with images/, masks/, splits/ and classes.txt, as docs/own-data.md describes it.
    """

    sample: Drawing | None = None
    archives: dict[ArchiveName, Archive] = {}
    local: str | None = None
    own: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Source":
        given = [name for name in ("sample", "archives", "local", "own") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of sample, archives, local and own must be given, found {found}")
        names = [_file_name(archive.urls[0]) for archive in self.archives.values()]
        if len(set(names)) != len(names):
            raise ValueError(f"archives: {', '.join(names)}: the first URLs must end in different file names")
        return self


def _refuse_no_reason(text: str) -> str:
    if len(text.split()) < 3:
        raise ValueError(
            f"must be a sentence that says why images may be trained and evaluated on, got {text!r}"
        )
    return " ".join(text.split())


Reason = Annotated[str, AfterValidator(_refuse_no_reason)]


class Data(Section):
    """classes: names in label order, background first.

    allow_partial: use those ids of a list whose files are there, instead of refusing an incomplete data set.
    allow_leak: why images may be both trained and evaluated on, a sentence or more; none: they may not.
    """

    source: Source
    allow_partial: bool
    allow_leak: list[Reason] = []
    classes: Annotated[list[str], Field(min_length=2, max_length=255)]
    splits: Splits

    @model_validator(mode="after")
    def _has_distinct_classes(self) -> "Data":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        return self


def _refuse_other_stores(destination: str) -> str:
    if "://" in destination and not re.fullmatch(r"s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9._/-]*)?", destination):
        raise ValueError(
            "must be a folder or s3://bucket/prefix; keys and endpoint come from the environment (AWS_...)"
        )
    return destination


class Shards(Section):
    """samples_per_shard images in a tar; seed: of the order they are written in.

    destination: a folder or s3://bucket/prefix for the shards, below which <profile>/<split> is made; data/ if None.
    """

    samples_per_shard: PositiveInt
    seed: Seed
    destination: Annotated[str, AfterValidator(_refuse_other_stores)] | None = None

    def place(self, profile: str, split: str) -> Path | str | None:
        """Where else than in data/ a split's shards go: a folder, absolute, or s3://..."""
        if self.destination is None:
            return None
        if self.destination.startswith("s3://"):
            return f"{self.destination.rstrip('/')}/{profile}/{split}"
        return Path(self.destination).expanduser().absolute() / profile / split


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
    name: Literal["sgd", "adamw"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)]


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


class Profile(Section):
    data: Data
    shards: Shards
    model: Model
    backbone: Backbone
    train: Train
    run: Run
    nets: Nets
    evaluate: Evaluate

    @model_validator(mode="after")
    def _has_a_range_of_workers(self) -> "Profile":
        if (self.run.min_workers or 1) > self.train.num_workers:
            raise ValueError(
                f"run.min_workers {self.run.min_workers} is more than train.num_workers {self.train.num_workers}"
            )
        return self

    def net(self, name: str) -> Net:
        """The recipe of one net of CHAIN."""
        return getattr(self.nets, name)


S = TypeVar("S", bound=Section)


class Params(Section):
    profile: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]


def load(root: Path = Path()) -> tuple[str, Profile]:
    """(name, values) of the profile that root/params.yaml names. ConfigError says which key is wrong and why."""
    params = _validated(Params, root / PARAMS)
    path = root / PROFILES / f"{params.profile}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in (root / PROFILES).glob("*.yaml"))
        raise ConfigError(
            f"{PARAMS}: unknown profile {params.profile!r}; known: {', '.join(known) or 'none'}"
        )
    return params.profile, _validated(Profile, path)


def _validated(section: type[S], path: Path) -> S:
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run from the project's root, where {PARAMS} lies") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (YAMLError, ValueError) as error:  # ValueError: no UTF-8, or no day of any calendar
        raise ConfigError(f"{path} is not YAML: {complaint(error)}") from None
    if values is None:
        raise ConfigError(f"{path} is empty; it must give {', '.join(section.model_fields)}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(sentence(section, path, detail) for detail in error.errors())) from None
