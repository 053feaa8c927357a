"""FCN models from their files. Separate from training, so that inference does not import shards."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from fcn.model import FCN
from pipeline.errors import CheckpointError
from pipeline.models import checkpoint


def load_model(path: Path, device: torch.device) -> tuple[FCN, dict[str, Any], str]:
    """Return the net in evaluation mode, the file's other content, and the sha256 of all content.

    The other content is "model" (arguments of FCN), "classes" (names), "lineage" and "trained_on" (None in old files).

    Raises CheckpointError if the file is missing, damaged, or does not fit the networks of this version.
    """
    content, digest = checkpoint.load(path, "model")
    try:
        model = FCN(**content["model"])
        if len(content["classes"]) != model.num_classes:
            raise ValueError(f"{model.num_classes} classes, but {len(content['classes'])} names for them")
        if reason := checkpoint.misfit(content["state_dict"], model.state_dict()):
            raise ValueError(reason)
        model.load_state_dict(content["state_dict"])
        about = {key: content[key] for key in ("model", "classes", "lineage")}
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = shorten(str(error), 400)
        raise CheckpointError(f"{path} does not fit the networks of this version: {reason}") from error
    return model.to(device).eval(), about | {"trained_on": content.get("trained_on")}, digest
