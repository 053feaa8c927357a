"""Published ImageNet classifiers under our layers' names, cast into fully convolutional trunks.

Each function takes what the file holds, drops the 1000 classes, and raises ValueError if a layer is missing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fcn.backbones.features import Backbone
from fcn.backbones.googlenet import GoogLeNet
from fcn.backbones.mobilenet import MobileNetV1
from fcn.backbones.resnet import ResNet50
from fcn.backbones.vgg import BLOCKS
from fcn.surgery import as_kernel

State = dict[str, Tensor]


def vgg16_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """The state_dict of fcn.backbones.vgg.VGG16 from that of torchvision's vgg16."""
    names = {f"features.{index}": ours for index, ours in zip(_conv_indices(), _conv_names(), strict=True)}
    # pool5 is 7x7 on the 224x224 crop the classifier was trained on
    return _cast(state, names | {"classifier.0": "fc6", "classifier.3": "fc7"}, {"fc6": 7, "fc7": 1}, "vgg16")


def alexnet_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """The state_dict of fcn.backbones.alexnet.AlexNet from that of torchvision's alexnet."""
    names = {f"features.{index}": f"conv{i}" for i, index in enumerate((0, 3, 6, 8, 10), start=1)}
    return _cast(
        state, names | {"classifier.1": "fc6", "classifier.4": "fc7"}, {"fc6": 6, "fc7": 1}, "alexnet"
    )


def googlenet_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """The state_dict of fcn.backbones.googlenet.GoogLeNet from that of torchvision's googlenet, auxiliary classifiers or not."""
    return _same_names(state, GoogLeNet, "torchvision's googlenet")


def resnet50_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """The state_dict of fcn.backbones.resnet.ResNet50 from that of torchvision's resnet50."""
    return _same_names(state, ResNet50, "torchvision's resnet50")


def mobilenet_v1_from_published(content: Mapping[str, Any]) -> State:
    """The state_dict of fcn.backbones.mobilenet.MobileNetV1 from mobilenetV1X0.25_pretrain.tar.

    content: the file's dict, its entry state_dict saved from a data-parallel wrapper (names begin with "module.").
    """
    state = content.get("state_dict", {})
    unwrapped = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return _same_names(unwrapped, MobileNetV1, "the published mobilenet_v1")


# By backbone: the function, and the pixels (fcn.pixels.CONVENTIONS) that the weights were trained with
CONVERTERS: dict[str, tuple[Callable[[Mapping[str, Any]], State], str]] = {
    "alexnet": (alexnet_from_torchvision, "torchvision"),
    "googlenet": (googlenet_from_torchvision, "inception"),
    "mobilenet_v1": (mobilenet_v1_from_published, "torchvision"),
    "resnet50": (resnet50_from_torchvision, "torchvision"),
    "vgg16": (vgg16_from_torchvision, "torchvision"),
}


def _cast(state: Mapping[str, Tensor], names: dict[str, str], kernels: dict[str, int], theirs: str) -> State:
    """Renames layers, and makes those in `kernels` convolutions of that size."""
    _check_all_there(state, (f"{name}.weight" for name in names), f"torchvision's {theirs}")
    cast = {
        f"{ours}.{kind}": state[f"{name}.{kind}"]
        for name, ours in names.items()
        for kind in ("weight", "bias")
    }
    for name, size in kernels.items():
        cast[f"{name}.weight"] = as_kernel(cast[f"{name}.weight"], size)
    return cast


def _same_names(state: Mapping[str, Tensor], ours: Callable[[], Backbone], theirs: str) -> State:
    """The tensors that our trunk has under the same name."""
    with torch.device("meta"):
        names = ours().state_dict().keys()
    # A counter that nothing reads here; files older than it lack it, and load all the same
    _check_all_there(state, (name for name in names if not name.endswith("num_batches_tracked")), theirs)
    return {name: state[name] for name in names if name in state}


def _check_all_there(state: Mapping[str, Tensor], names: Iterable[str], theirs: str) -> None:
    missing = sorted(name for name in names if name not in state)
    if missing:
        raise ValueError(f"these are no weights of {theirs}; lacking {', '.join(missing[:4])}")


def _conv_names() -> list[str]:
    return [f"conv{block}_{i}" for block, (_, num) in enumerate(BLOCKS, 1) for i in range(1, num + 1)]


def _conv_indices() -> list[int]:
    """Places of the convolutions in torchvision's `features`: each is followed by a ReLU, each block by a pooling."""
    indices, place = [], 0
    for _, num_convs in BLOCKS:
        for _ in range(num_convs):
            indices.append(place)
            place += 2
        place += 1
    return indices
