"""The file that a chain starts from: an ImageNet classifier's trunk, or random weights for small experiments."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from fcn.backbones.imagenet import CONVERTERS
from fcn.model import FCN
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import checkpoint


def write_random(dest: Path, model: dict[str, Any], seed: int) -> None:
    """Write the trunk of FCN(**model) with random initial weights, drawn from the seed."""
    torch.manual_seed(seed)
    _write(dest, make_net(model), f"random, seed {seed}")


def write_pretrained(dest: Path, model: dict[str, Any], weights: Path) -> None:
    """Write the trunk of FCN(**model) with published weights. Raises CheckpointError if they do not fit it."""
    name = model["backbone"]
    if name not in CONVERTERS:
        raise CheckpointError(
            f"published weights of backbone {name!r} cannot be converted; known: {', '.join(CONVERTERS)}"
        )
    convert, trained_pixels = CONVERTERS[name]
    state, net = checkpoint.load_weights(weights), make_net(model)
    model_pixels = net.backbone.get_submodule("pixels").convention
    if model_pixels != trained_pixels:
        raise CheckpointError(
            f"{weights} was trained on {trained_pixels!r} pixels, model.pixels is {model_pixels!r}"
        )
    try:
        net.backbone.load_state_dict(convert(state))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{weights} does not fit backbone {name!r} with the profile's model section: "
            f"{shorten(str(error), 400)}"
        ) from error
    _write(dest, net, weights.name)


def make_net(model: dict[str, Any]) -> FCN:
    """Return FCN(**model). Raises ConfigError if the profile's model section describes no net."""
    try:
        return FCN(**model)
    except ValueError as error:
        raise ConfigError(f"the profile's model section: {error}") from error


def _write(dest: Path, net: FCN, source: str) -> None:
    checkpoint.save(dest, "backbone", {"source": source, "state_dict": dict(net.backbone.state_dict())})
