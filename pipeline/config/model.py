"""The sections of a profile about the net: Model and Backbone."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.data import Checksum, Url
from pipeline.config.section import PositiveFloat, Section, Seed


class Model(Section):
    """The arguments of fcn.FCN besides num_classes and stride; see there.

    The keys from `width` on are options of some backbones; without them the backbone's own defaults hold.
    """

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
    pixels: Literal["caffe", "torchvision", "inception", "efficientnet_lite"] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return FCN's keyword arguments, without the options that are not given."""
        return self.model_dump(exclude_none=True)


class Weights(Section):
    """A published file of weights, from mirrors or from an installed package.

    urls: mirrors, in the order in which they are tried.
    allowed_hosts: other hosts that a mirror may redirect to.
    package: name of a package of the registry, where model hosts cannot be reached.
    file: the path of the file in that package.
    checksum: "md5:..." or "sha256:..." of the file.
    """

    urls: list[Url] = []
    allowed_hosts: list[str] = []
    package: str | None = None
    file: str | None = None
    checksum: Checksum

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Weights":
        if bool(self.urls) == bool(self.package) or bool(self.package) != bool(self.file):
            raise ValueError("must give either urls, or package and file")
        return self


class Backbone(Section):
    """The weights that the chain starts from.

    weights: the published file; None: random weights.
    seed: of the random weights.
    """

    weights: Weights | None = None
    seed: Seed = 0
