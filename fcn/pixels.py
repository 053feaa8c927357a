"""Pixel normalisation. It belongs to a backbone's weights, so it is the backbone's first layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PixelConvention:
    """The preprocessing that weights were trained with.

    mean, std: of the R, G and B channel, on the scale 0..255.
    is_bgr: whether the weights expect the channels in the order B, G, R.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_bgr: bool


CONVENTIONS = {
    # Caffe's ImageNet models: BGR, mean subtracted, no scaling (reference voc_layers.py lists B, G, R)
    "caffe": PixelConvention((122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0), is_bgr=True),
    # torchvision's: RGB in 0..1, mean (.485, .456, .406), std (.229, .224, .225)
    "torchvision": PixelConvention((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), is_bgr=False),
    # Google's: RGB in -1..1. torchvision's googlenet weights come from there (its transform_input=True)
    "inception": PixelConvention((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), is_bgr=False),
    # EfficientNet-Lite's, whole numbers for small processors
    "efficientnet_lite": PixelConvention((127.0, 127.0, 127.0), (128.0, 128.0, 128.0), is_bgr=False),
}


class PixelNormalization(nn.Module):
    """Normalise an image as weights of one convention expect it.

    convention: a key of CONVENTIONS.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, convention: str):
        super().__init__()
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown pixel convention {convention!r}; known: {', '.join(CONVENTIONS)}")
        chosen = CONVENTIONS[convention]
        self.convention, self.is_bgr = convention, chosen.is_bgr
        self.register_buffer("mean", torch.tensor(chosen.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(chosen.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, H, W) RGB, uint8 or float in 0..255, to the normalised float image of the same shape."""
        image = (image.to(self.mean.dtype) - self.mean) / self.std
        return image.flip(1) if self.is_bgr else image
