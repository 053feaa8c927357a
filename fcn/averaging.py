"""A net's opinion averaged over scales of the image and its mirror image: what published tables call "MS + flip".

The paper scores a single pass at the image's own size. DeepLab and others report averages, which are a little higher
and take as many passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Averaging:
    """scales: factors of both sides of an image.   flip: over the mirror images of all of them, too."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be numbers above 0, at least one, got {list(self.scales)}")

    @property
    def is_none(self) -> bool:
        return self.scales == (1.0,) and not self.flip


def average_probability(score: Callable[[Tensor], Tensor], image: Tensor, averaging: Averaging) -> Tensor:
    """(N, C, H, W) float32: each class's probability, averaged.

    score: of images (N, 3, h, w) -> (N, C, h, w) logits.   image: (N, 3, H, W) RGB, uint8 or float in 0..255.
    Images are resized bilinearly, without corners aligned; the softmax is taken at each scale, and its probabilities
    are brought back to (H, W) the same way.
    """
    size, scales, flip = image.shape[-2:], averaging.scales, averaging.flip
    total = torch.zeros((), device=image.device)
    for scale in scales:
        scaled = (
            image if scale == 1 else _resized(image.float(), [max(1, round(scale * side)) for side in size])
        )
        for mirrored in (False, True) if flip else (False,):
            probability = score(scaled.flip(-1) if mirrored else scaled).softmax(1)
            probability = probability.flip(-1) if mirrored else probability
            total = total + _resized(probability, size)
    return total / (len(scales) * (1 + flip))


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    if values.shape[-2:] == torch.Size(size):
        return values
    return F.interpolate(values, list(size), mode="bilinear", align_corners=False)
