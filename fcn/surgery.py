"""How one network starts another: casting a classifier, and handing a coarse net to the finer one."""

from collections import OrderedDict
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn

from fcn.backbones.speed import OneProduct
from fcn.model import FCN

# What each stride has that the coarser one has not, and the other way round: the only layers that may differ
NEW = {16: ("upscore2", "score_pool4", "upscore16"), 8: ("upscore_pool4", "score_pool3", "upscore8")}
OLD = {16: ("upscore",), 8: ("upscore16",)}


def convolutionalize(classifier: nn.Module) -> nn.Sequential:
    """The classifier as a convolutional net: what it says of one crop, for a whole grid of crops at once.

    classifier: has `features`, then `classifier` with the linear layers: torchvision's vgg16 and alexnet, and
        fcn.backbones.alexnet.CaffeNetClassifier. Its weights are shared, not copied.
    The net takes what the classifier takes, from the size of its crop on: (N, 3, H, W) -> scores (N, C, h, w).
    On the crop (224x224; CaffeNet 227x227) h = w = 1 and the scores are the classifier's; of 500x500, CaffeNet
    gives the paper's grid of 10x10. ValueError for a classifier of another form.
    """
    name = type(classifier).__name__
    features, head = getattr(classifier, "features", None), getattr(classifier, "classifier", None)
    if not isinstance(features, nn.Sequential) or not isinstance(head, nn.Sequential):
        raise ValueError(f"{name} cannot be cast: it is not made of features, then classifier")
    channels = [layer.out_channels for layer in features.modules() if isinstance(layer, nn.Conv2d)][-1]
    first = next(layer for layer in head if isinstance(layer, nn.Linear))
    kernel = isqrt(first.in_features // channels)
    if kernel == 1:
        raise ValueError(f"{name} cannot be cast: it averages its features, so that no layer has a window")
    layers = (
        (
            key,
            _as_convolution(layer, kernel if layer is first else 1)
            if isinstance(layer, nn.Linear)
            else layer,
        )
        for key, layer in head.named_children()
    )
    dense = nn.Sequential(OrderedDict(features=features, classifier=nn.Sequential(OrderedDict(layers))))
    return dense.train(classifier.training)


def as_kernel(weight: Tensor, size: int) -> Tensor:
    """A fully connected layer's (O, C * size * size) matrix as the (O, C, size, size) kernel that computes the same.

    The inputs were flattened in C, H, W order, so it is a flat copy (reference surgery.py).
    """
    out_features, in_features = weight.shape
    channels, rest = divmod(in_features, size * size)
    if rest:
        raise ValueError(f"{in_features} inputs are no whole number of {size} x {size} windows")
    return weight.reshape(out_features, channels, size, size)


def transplant(finer: FCN, coarser: Mapping[str, Tensor]) -> None:
    """Copies by name what the coarser net learned into the next finer one, in place: 32s -> 16s -> 8s.

    coarser: the state_dict of the net with twice the stride. ValueError unless the layers left over are exactly those
    this stride adds and drops, and every other one has the same shape: a link that is dead would go unseen in training.
    """
    if finer.stride not in NEW:
        raise ValueError(f"a stride-{finer.stride} net starts from a backbone, not from a coarser net")
    here = finer.state_dict()
    missing = {name for name in here if _layer(name) not in NEW[finer.stride]} - set(coarser)
    foreign = {name for name in coarser if _layer(name) not in OLD[finer.stride]} - set(here)
    foreign |= {name for name in here if _layer(name) in NEW[finer.stride]} & set(coarser)
    if missing or foreign:
        raise ValueError(
            f"this is no FCN-{2 * finer.stride}s to start FCN-{finer.stride}s from; "
            f"it lacks {_some(missing)}, and has {_some(foreign)} too many"
        )
    shared = {name: tensor for name, tensor in coarser.items() if name in here}
    copy_weights(here, shared)


def copy_weights(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies every tensor of `source` into the one of that name in `target`; ValueError if a shape differs."""
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the source, {tuple(target[name].shape)} here"
            )
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)


def _as_convolution(linear: nn.Linear, size: int) -> nn.Conv2d:
    """The layer as a convolution that shares its weights."""
    kernel = as_kernel(linear.weight.detach(), size)
    layer = OneProduct(kernel.shape[1], kernel.shape[0], size, bias=linear.bias is not None, device="meta")
    layer.weight = nn.Parameter(kernel, requires_grad=linear.weight.requires_grad)
    layer.bias = linear.bias
    return layer


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: set[str]) -> str:
    shown = sorted(names)[:4]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"
