"""A model file of a net so small that it is made at once, and predicts more than one class."""

from pathlib import Path

import torch

from fcn.model import FCN
from pipeline.models import checkpoint

CLASSES = ["background", "disc", "square"]
OPTIONS = {
    "backbone": "vgg16",
    "num_classes": 3,
    "stride": 8,
    "padding": "tight",
    "width": 0.0625,
    "batch_norm": True,
    "fc6_kernel": 1,
    "pixels": "torchvision",
}


def write_model(path: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    model = FCN(**OPTIONS)
    with torch.no_grad():  # a net whose scores are not all zero, as those of one that is made anew
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    content = {
        "model": OPTIONS,
        "classes": CLASSES,
        "lineage": {"net": "fcn8s"},
        "state_dict": model.state_dict(),
    }
    return checkpoint.save(path, "model", content)
