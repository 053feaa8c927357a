"""The sections of a profile about the net: Model and Backbone."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.data import Checksum, Url
from pipeline.config.section import PositiveFloat, Section, Seed

# As fcn's backbones are; a test compares them. Reading a profile must not take the seconds that importing torch takes
TIGHT_BACKBONES = ("alexnet", "caffenet", "vgg16")  # whose padding may be tight
VGG16_KEYS = ("batch_norm", "fc6_kernel")


class Model(Section):
    """The arguments of fcn.FCN besides num_classes and stride; see there.

    The keys from `width` on are options of the backbone; without them its own defaults hold. batch_norm and fc6_kernel
    are options of vgg16 alone.
    """

    backbone: Literal[
        "alexnet",
        "caffenet",
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
        "googlenet",
        "mobilenet_v1",
        "resnet50",
        "vgg16",
    ]
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

    @model_validator(mode="after")
    def _describes_a_net(self) -> "Model":
        if self.padding == "tight" and self.backbone not in TIGHT_BACKBONES:
            raise ValueError(
                f"padding tight is for {', '.join(TIGHT_BACKBONES)}; {self.backbone} has only the padding of its own "
                "layers, reference"
            )
        foreign = [key for key in VGG16_KEYS if getattr(self, key) is not None]
        if foreign and self.backbone != "vgg16":
            raise ValueError(
                f"{' and '.join(foreign)} is for backbone vgg16, got {self.backbone}; leave it out"
            )
        if self.fc6_kernel is not None and self.fc6_kernel % 2 == 0:
            raise ValueError(f"fc6_kernel must be odd to be centred on its cell, got {self.fc6_kernel}")
        return self

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
