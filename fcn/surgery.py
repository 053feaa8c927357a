"""How one network starts another: casting fully connected layers, and handing a coarse net to the finer one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fcn.model import FCN

# What each stride has that the coarser one has not, and the other way round: the only layers that may differ
NEW = {16: ("upscore2", "score_pool4", "upscore16"), 8: ("upscore_pool4", "score_pool3", "upscore8")}
OLD = {16: ("upscore",), 8: ("upscore16",)}


def convolutionalize(weight: Tensor, kernel: int) -> Tensor:
    """A fully connected layer's (O, C * k * k) matrix as the (O, C, k, k) kernel that gives the same everywhere.

    The inputs were flattened in C, H, W order, so it is a flat copy (reference surgery.py).
    """
    out_features, in_features = weight.shape
    channels, rest = divmod(in_features, kernel * kernel)
    if rest:
        raise ValueError(f"{in_features} inputs are no whole number of {kernel} x {kernel} windows")
    return weight.reshape(out_features, channels, kernel, kernel)


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


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: set[str]) -> str:
    shown = sorted(names)[:4]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"
