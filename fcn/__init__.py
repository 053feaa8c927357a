"""Fully convolutional networks for semantic segmentation (Long, Shelhamer, Darrell; CVPR 2015, PAMI 2016).

The names below are imported on first use, so that `fcn.IGNORE_LABEL` does not import torch.
"""

from importlib import import_module

IGNORE_LABEL = 255  # void: excluded from loss and metrics, as in VOC

_HOME = {
    "FCN": "fcn.model",
    "ConfusionMatrix": "fcn.metrics",
    "Scores": "fcn.metrics",
    "pixel_cross_entropy": "fcn.loss",
    "transplant": "fcn.surgery",
    "convolutionalize": "fcn.surgery",
}
__all__ = ["IGNORE_LABEL", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fcn' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
