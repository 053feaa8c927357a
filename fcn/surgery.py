"""How one network starts from another: a classifier cast into a dense net, and a coarse net handed to the finer one."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from math import isqrt

import torch
from torch import Tensor, nn

from fcn.backbones.speed import OneProduct
from fcn.model import FCN

# The layers of each stride that the coarser net lacks, and those of the coarser net that are dropped
NEW = {16: ("upscore2", "score_pool4", "upscore16"), 8: ("upscore_pool4", "score_pool3", "upscore8")}
OLD = {16: ("upscore",), 8: ("upscore16",)}
NUM_NAMED = 4  # of many layers in a message


def convolutionalize(classifier: nn.Module) -> nn.Sequential:
    """Return the classifier as a convolutional net that scores every crop of a larger image in one pass.

    The weights are shared, not copied. The net maps (N, 3, H, W), normalised as the classifier expects, to
    (N, C, h, w) scores; H and W are at least those of the classifier's crop. On a crop (224x224; CaffeNet 227x227)
    h = w = 1 and the scores are the classifier's. On 500x500, CaffeNet gives the paper's grid of 10x10.

    classifier: has `features`, then `classifier` with the linear layers: torchvision's vgg16 and alexnet, and
        fcn.backbones.alexnet.CaffeNetClassifier.

    Raises ValueError for a classifier of another form.
    """
    name = type(classifier).__name__
    features, head = getattr(classifier, "features", None), getattr(classifier, "classifier", None)
    if not isinstance(features, nn.Sequential) or not isinstance(head, nn.Sequential):
        raise ValueError(f"{name} cannot be cast: it is not made of features, then classifier")
    channels = [layer.out_channels for layer in features.modules() if isinstance(layer, nn.Conv2d)][-1]
    first = next(layer for layer in head if isinstance(layer, nn.Linear))
    kernel = isqrt(first.in_features // channels)
    if kernel == 1:
        raise ValueError(f"{name} cannot be cast: it averages its features, so no layer has a window")
    dense_head = nn.Sequential()
    for key, layer in head.named_children():
        if isinstance(layer, nn.Linear):
            layer = _as_convolution(layer, kernel if layer is first else 1)
        dense_head.add_module(key, layer)
    dense = nn.Sequential(OrderedDict(features=features, classifier=dense_head))
    return dense.train(classifier.training)


def as_kernel(weight: Tensor, size: int) -> Tensor:
    """Return a fully connected layer's weight as the kernel of a convolution that computes the same, without a copy.

    The layer's inputs were flattened in the order C, H, W, so the bytes stay as they are (reference surgery.py).

    weight: (O, C * size * size); the kernel is (O, C, size, size).
    size: side of the window, in cells.
    """
    out_features, in_features = weight.shape
    channels, rest = divmod(in_features, size * size)
    if rest:
        raise ValueError(f"{in_features} inputs are not a whole number of {size} x {size} windows")
    return weight.reshape(out_features, channels, size, size)


def transplant(finer: FCN, coarser: Mapping[str, Tensor]) -> None:
    """Copy what the coarser net learned into the next finer net, by name and in place: 32s to 16s, 16s to 8s.

    finer: the net of stride 16 or 8 to be trained next.
    coarser: the state_dict of the net with twice the stride.

    Raises ValueError unless the two differ in exactly the layers that this stride adds and drops, and all shared
    tensors have the same shape. A missing link would otherwise stay unnoticed in training.
    """
    if finer.stride not in NEW:
        raise ValueError(f"a stride-{finer.stride} net starts from a backbone, not from a coarser net")
    state = finer.state_dict()
    missing = {name for name in state if _layer(name) not in NEW[finer.stride]} - set(coarser)
    foreign = {name for name in coarser if _layer(name) not in OLD[finer.stride]} - set(state)
    foreign |= {name for name in state if _layer(name) in NEW[finer.stride]} & set(coarser)
    if missing or foreign:
        raise ValueError(
            f"these are not the weights of an FCN-{2 * finer.stride}s, from which FCN-{finer.stride}s starts; "
            f"missing: {first_names(missing)}; unexpected: {first_names(foreign)}"
        )
    shared = {name: tensor for name, tensor in coarser.items() if name in state}
    for name, tensor in shared.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the coarser net, {tuple(state[name].shape)} in the finer"
            )
    with torch.no_grad():
        for name, tensor in shared.items():
            state[name].copy_(tensor)


def take_classes(
    model: FCN, classes: Sequence[str], trained: Mapping[str, Tensor], trained_classes: Sequence[str]
) -> None:
    """Copy another net's score and upsampling layers into this one, class by class and in place.

    Classes are matched by name. New classes, and layers that only one of the two nets has, stay as they are.

    model: the net to be trained.
    classes: names of its classes in label order.
    trained: these layers of a net with the same backbone and options, of any stride.
    trained_classes: names of that net's classes in label order.
    """
    known = [name for name in classes if name in trained_classes]
    ours, theirs = (
        torch.tensor([names.index(name) for name in known], dtype=torch.long)
        for names in (classes, trained_classes)
    )
    state = model.state_dict()
    with torch.no_grad():
        for name in state.keys() & trained.keys():
            layer = model.get_submodule(_layer(name))
            if (
                isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1
            ):  # learned, from each class to each
                state[name][ours[:, None], ours] = trained[name][theirs[:, None], theirs]
            else:
                state[name][ours] = trained[name][theirs]


def first_names(names: Collection[str]) -> str:
    """Return the first names in alphabetical order and how many more there are, or "none"."""
    rest = len(names) - NUM_NAMED
    return ", ".join(sorted(names)[:NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "") or "none"


def _as_convolution(linear: nn.Linear, size: int) -> nn.Conv2d:
    """Return the layer as a convolution that shares its weights."""
    kernel = as_kernel(linear.weight.detach(), size)
    layer = OneProduct(kernel.shape[1], kernel.shape[0], size, bias=linear.bias is not None, device="meta")
    layer.weight = nn.Parameter(kernel, requires_grad=linear.weight.requires_grad)
    layer.bias = linear.bias
    return layer


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
