"""Weights of published ImageNet classifiers, converted to the state_dict of our trunks.

Each converter takes the content of the published file, drops the layer of the 1000 classes, and raises ValueError
naming the layers that are missing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fcn.backbones.efficientnet_lite import SIZES, EfficientNetLite, num_blocks
from fcn.backbones.features import Backbone
from fcn.backbones.googlenet import GoogLeNet
from fcn.backbones.mobilenet import MobileNetV1
from fcn.backbones.resnet import ResNet50
from fcn.backbones.vgg import BLOCKS
from fcn.surgery import as_kernel, first_names

State = dict[str, Tensor]


def vgg16_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """Return the state_dict of VGG16 from that of torchvision's vgg16."""
    # pool5 is 7x7 on the 224x224 crop the classifier was trained on
    names = dict(_vgg16_convolutions()) | {"classifier.0": "fc6", "classifier.3": "fc7"}
    return _cast(state, names, {"fc6": 7, "fc7": 1}, "vgg16")


def alexnet_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """Return the state_dict of AlexNet from that of torchvision's alexnet."""
    names = {f"features.{index}": f"conv{i}" for i, index in enumerate((0, 3, 6, 8, 10), start=1)}
    names |= {"classifier.1": "fc6", "classifier.4": "fc7"}
    return _cast(state, names, {"fc6": 6, "fc7": 1}, "alexnet")


def googlenet_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """Return the state_dict of GoogLeNet from that of torchvision's googlenet, auxiliary classifiers or not."""
    return _same_names(state, GoogLeNet, "torchvision's googlenet")


def resnet50_from_torchvision(state: Mapping[str, Tensor]) -> State:
    """Return the state_dict of ResNet50 from that of torchvision's resnet50."""
    return _same_names(state, ResNet50, "torchvision's resnet50")


def mobilenet_v1_from_published(content: Mapping[str, Any]) -> State:
    """Return the state_dict of MobileNetV1 from the content of mobilenetV1X0.25_pretrain.tar.

    content: its entry `state_dict` was saved from a data-parallel wrapper, so names begin with "module.".
    """
    state = content.get("state_dict", {})
    unwrapped = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return _same_names(unwrapped, MobileNetV1, "the published mobilenet_v1")


def efficientnet_lite_from_published(size: str, state: Mapping[str, Tensor]) -> State:
    """Return the state_dict of EfficientNetLite from that of a file in the naming of lukemelas' efficientnet_pytorch.

    size: a key of SIZES.
    """
    prefixes = {"_conv_stem.": "stem.0.", "_bn0.": "stem.1.", "_conv_head.": "head.0.", "_bn1.": "head.1."}
    number = 0
    for stage, repeats in enumerate(num_blocks(size), start=1):
        for i in range(repeats):
            for layer in ("expand_conv", "bn0", "depthwise_conv", "bn1", "project_conv", "bn2"):
                prefixes[f"_blocks.{number}._{layer}."] = f"stage{stage}.{i}.layers.{layer}."
            number += 1
    renamed = {}
    for name, tensor in state.items():
        prefix = name[: name.rfind(".") + 1]
        renamed[prefixes.get(prefix, prefix) + name.removeprefix(prefix)] = tensor
    return _same_names(renamed, partial(EfficientNetLite, size), f"the published {size}")


# Of each backbone: the converter, and the pixels (fcn.pixels.CONVENTIONS) that the weights were trained with
CONVERTERS: dict[str, tuple[Callable[[Mapping[str, Any]], State], str]] = {
    "alexnet": (alexnet_from_torchvision, "torchvision"),
    "googlenet": (googlenet_from_torchvision, "inception"),
    "mobilenet_v1": (mobilenet_v1_from_published, "torchvision"),
    "resnet50": (resnet50_from_torchvision, "torchvision"),
    "vgg16": (vgg16_from_torchvision, "torchvision"),
} | {size: (partial(efficientnet_lite_from_published, size), "efficientnet_lite") for size in SIZES}


def _cast(state: Mapping[str, Tensor], names: dict[str, str], kernels: dict[str, int], theirs: str) -> State:
    """Return the state with layers renamed, those in `kernels` as convolutions of that size."""
    _check_complete(state, (f"{name}.weight" for name in names), f"torchvision's {theirs}")
    cast = {
        f"{ours}.{kind}": state[f"{name}.{kind}"]
        for name, ours in names.items()
        for kind in ("weight", "bias")
    }
    for name, size in kernels.items():
        cast[f"{name}.weight"] = as_kernel(cast[f"{name}.weight"], size)
    return cast


def _same_names(state: Mapping[str, Tensor], ours: Callable[[], Backbone], theirs: str) -> State:
    """Return the tensors that our trunk has under the same name."""
    with torch.device("meta"):
        names = ours().state_dict().keys()
    # Batch norm's counter is not used, so old files without the counter load as well
    _check_complete(state, (name for name in names if not name.endswith("num_batches_tracked")), theirs)
    return {name: state[name] for name in names if name in state}


def _check_complete(state: Mapping[str, Tensor], names: Iterable[str], theirs: str) -> None:
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"these are not the weights of {theirs}; missing: {first_names(missing)}")


def _vgg16_convolutions() -> Iterator[tuple[str, str]]:
    """Yield (torchvision's name, ours). In torchvision a ReLU follows each convolution, a pooling each block."""
    index = 0
    for block, (_, num_convs) in enumerate(BLOCKS, start=1):
        for i in range(1, num_convs + 1):
            yield f"features.{index}", f"conv{block}_{i}"
            index += 2
        index += 1
