"""Models as their files hold them: a module of its own, because whoever only uses a net wants no shards."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from fcn.model import FCN
from pipeline.errors import CheckpointError
from pipeline.models import checkpoint


def load_model(path: Path, device: torch.device) -> tuple[FCN, dict[str, Any], str]:
    """(the net in evaluation mode, what its file says besides weights, the sha256 of the file's content)."""
    content, digest = checkpoint.load(path, "model")
    try:
        model = FCN(**content["model"])
        if reason := checkpoint.misfit(content["state_dict"], model.state_dict()):
            raise ValueError(reason)
        model.load_state_dict(content["state_dict"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = shorten(str(error), 400)
        raise CheckpointError(f"{path} does not fit the networks of this version: {reason}") from error
    about = {key: content[key] for key in ("model", "classes", "lineage")}
    return model.to(device).eval(), about | {"trained_on": content.get("trained_on")}, digest
