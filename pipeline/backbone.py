"""The file a chain begins from: an ImageNet classifier's trunk, or random weights for small experiments."""

from pathlib import Path
from typing import Any

import torch

from fcn.imagenet import vgg16_from_torchvision
from fcn.model import FCN
from pipeline import checkpoint
from pipeline.errors import CheckpointError

CONVERTERS = {"vgg16": vgg16_from_torchvision}  # from published weights, by backbone


def write_random(dest: Path, model: dict[str, Any], seed: int) -> None:
    """Writes the trunk of FCN(**model) with the initial weights of its kind, drawn from the seed."""
    torch.manual_seed(seed)
    _write(dest, FCN(**model), f"random, seed {seed}")


def write_pretrained(dest: Path, model: dict[str, Any], weights: Path) -> None:
    """Writes the trunk of FCN(**model) with published weights; CheckpointError if they do not fit it."""
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net = FCN(**model)
        net.backbone.load_state_dict(CONVERTERS[model["backbone"]](state))
    except Exception as error:
        raise CheckpointError(
            f"{weights} does not fit backbone {model['backbone']!r} as the profile's model section describes it: "
            f"{str(error).splitlines()[0]}"
        ) from error
    _write(dest, net, weights.name)


def _write(dest: Path, net: FCN, source: str) -> None:
    checkpoint.save(dest, "backbone", {"source": source, "state_dict": dict(net.backbone.state_dict())})
