"""The file that a chain starts from: an ImageNet classifier's trunk, another net, or random weights."""

from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from fcn.backbones.imagenet import CONVERTERS
from fcn.model import BACKBONES, FCN
from pipeline import paths
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import checkpoint
from pipeline.models.model_file import load_model

# Options of FCN that may differ from those of the net that a chain starts from: its layers mean the same
FREE = ("num_classes", "stride", "score_init", "fixed_trunk", "dropout")


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


def write_from_net(dest: Path, model: dict[str, Any], start: str) -> None:
    """Write another net's trunk, and its score and upsampling layers with the names of its classes.

    model: arguments of FCN, with which the net was made but for those of FREE.
    start: the net's model file, as `train.start` names it.

    Raises CheckpointError if the file is missing or damaged, or its net has another backbone or other options.
    """
    path = paths.named(start)
    make_net(model)  # refuses an unknown backbone or option
    net, about, digest = load_model(path, torch.device("cpu"))
    theirs, ours = _options(about["model"]), _options(model)
    if differences := [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} in the profile"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]:
        raise CheckpointError(
            f"train.start: {path} is another net than the profile's model section describes: "
            f"{'; '.join(differences)}; name another file, or give the section these values"
        )
    state = net.state_dict()
    content = {
        "source": start,
        "state_dict": dict(net.backbone.state_dict()),
        "layers": {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")},
        "classes": about["classes"],
        "trained_on": about["trained_on"],
        "lineage": {"start": start, "start_sha256": digest},
    }
    checkpoint.save(dest, "backbone", content)


def _options(model: dict[str, Any]) -> dict[str, Any]:
    """Return all options of FCN(**model) that decide what its layers mean, those not given by their defaults."""
    options: dict[str, Any] = {}
    for function in (BACKBONES[model.get("backbone", "vgg16")], FCN):
        parameters = signature(function).parameters.values()
        options |= {each.name: each.default for each in parameters if each.default is not each.empty}
    return {key: value for key, value in (options | model).items() if key not in FREE}


def make_net(model: dict[str, Any]) -> FCN:
    """Return FCN(**model). Raises ConfigError if the profile's model section describes no net."""
    try:
        return FCN(**model)
    except ValueError as error:
        raise ConfigError(f"the profile's model section: {error}") from error


def _write(dest: Path, net: FCN, source: str) -> None:
    checkpoint.save(dest, "backbone", {"source": source, "state_dict": dict(net.backbone.state_dict())})
