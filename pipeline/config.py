"""params.yaml names a profile; profiles/<name>.yaml holds its values. Read once, validated, frozen."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

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

from pipeline.errors import ConfigError

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")
CHAIN = ("fcn32s", "fcn16s", "fcn8s")  # each starts from the one before it, the first from the backbone
STRIDE = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
ArchiveName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
SplitName = Annotated[str, StringConstraints(pattern=r"^(voc20(07|11|12)|sbd)/[A-Za-z0-9_]+$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Drawing(Section):
    """The sample data set: so many images of image_size x image_size pixels, drawn from a seed."""

    num_train: PositiveInt
    num_val: PositiveInt
    image_size: Annotated[int, Field(ge=48, le=1024)]
    seed: Seed


def _refuse_secret(url: str) -> str:
    """A profile's values end up in dvc.lock and MLflow, so a password must not be among them."""
    if "@" in url or not url.startswith(("https://", "http://", "file://")):
        raise ValueError("must be an https, http or file URL without user:password@")
    return url


Url = Annotated[str, AfterValidator(_refuse_secret)]


class Archive(Section):
    """A published archive: mirrors in the order to try, and a checksum "md5:..." or "sha256:..."."""

    urls: Annotated[list[Url], Field(min_length=1)]
    checksum: Annotated[str, StringConstraints(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64})$")]
    max_size_gb: PositiveFloat = 4.0


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
    """Where the images come from: exactly one of the three.

    local: a folder with VOCdevkit/ and benchmark_RELEASE/ as the archives unpack.
    """

    sample: Drawing | None = None
    archives: dict[ArchiveName, Archive] = {}
    local: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Source":
        given = [name for name in ("sample", "archives", "local") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of sample, archives and local must be given, found {found}")
        return self


class Data(Section):
    """classes: names in label order, background first.

    allow_partial: use those ids of a list whose files are there, instead of refusing an incomplete data set.
    """

    source: Source
    allow_partial: bool
    classes: Annotated[list[str], Field(min_length=2, max_length=255)]
    splits: Splits

    @model_validator(mode="after")
    def _has_distinct_classes(self) -> "Data":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        return self


class Shards(Section):
    """samples_per_shard images in a tar; seed: of the order they are written in."""

    samples_per_shard: PositiveInt
    seed: Seed


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

    batch_size: images a step over all workers.   loss: "sum" over pixels, as the reference, or "mean" over valid ones.
    sampling: "epochs" shuffles, "replacement" draws uniformly as the reference does.   schedule: of lr over the run.
    num_workers: processes, a GPU each if use_gpu.   precision: of the forward pass; bfloat16 wants hardware for it.
    class_balancing: weigh each class's pixels inversely to its share.   sample_pixels: the share of pixels, drawn anew
    each step, that the loss counts. The paper tried both and found no gain.
    """

    num_workers: PositiveInt
    use_gpu: bool = False
    batch_size: PositiveInt
    loss: Literal["sum", "mean"]
    optimizer: Optimizer
    schedule: Literal["fixed", "poly"] = "fixed"
    sampling: Literal["epochs", "replacement"] = "epochs"
    precision: Literal["float32", "bfloat16"] = "float32"
    class_balancing: bool = False
    sample_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    exchange: Exchange = Exchange()
    seed: Seed

    @model_validator(mode="after")
    def _divides_evenly(self) -> "Train":
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_workers {self.num_workers}, "
                "so that every worker takes as many images"
            )
        return self


class Run(Section):
    """How training runs, without a say in its result: a change of these trains nothing anew.

    min_workers: with how many of train.num_workers training begins, and goes on, while a cluster has no room for all.
    loader_workers: processes that read ahead for each worker.   max_failures: how often a run starts again from its
    last checkpoint after a worker died.   log_every, checkpoint_every: in iterations.
    """

    cpus_per_worker: PositiveInt = 1
    min_workers: PositiveInt | None = None
    loader_workers: NonNegativeInt = 0
    log_every: PositiveInt
    checkpoint_every: PositiveInt
    max_failures: NonNegativeInt = 2


class Net(Section):
    lr: PositiveFloat
    iterations: PositiveInt


class Nets(Section):
    fcn32s: Net
    fcn16s: Net
    fcn8s: Net


class Evaluate(Section):
    """num_figures: images drawn beside label and prediction."""

    num_figures: PositiveInt = 6
    use_gpu: bool = False


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
        raise ConfigError(f"{path} is not YAML: {_complaint(error)}") from None
    if values is None:
        raise ConfigError(f"{path} is empty; it must give {', '.join(section.model_fields)}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(section, path, detail) for detail in error.errors())) from None


def _complaint(error: Exception) -> str:
    """What is wrong and in which line, without the parser's drawing of the place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


def _sentence(section: type[Section], path: Path, detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "the file"
    given, reason = detail["input"], detail["msg"]
    match detail["type"]:
        case "extra_forbidden" | "invalid_key":
            known = ", ".join(_keys_beside(section, detail["loc"]))
            return f"{path}: unknown key {where}; known there: {known}"
        case "missing":
            return f"{path}: {where} is missing; add it"
        case "value_error":
            return f"{path}: {where}: {reason.removeprefix('Value error, ')}"
        case "string_pattern_mismatch":
            return f"{path}: {where} must match {detail['ctx']['pattern']}, got {given!r}"
        case "too_short" | "too_long":
            reason = re.sub(r".*should have (.*) after validation.*", r"\1", reason)
            return f"{path}: {where} must have {reason}, got {given!r}"
    kind = _KINDS.get(detail["type"]) or reason.removeprefix("Input should be ")
    return f"{path}: {where} must be {kind}, got {given!r}"


def _keys_beside(section: type[Section], where: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand in the section which the last part of `where` is in."""
    for part in where[:-1]:
        field = section.model_fields.get(str(part))  # None: the name of an archive, not a key of ours
        annotation = field.annotation if field else None
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                section = kind
    return list(section.model_fields)


_KINDS = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
}
