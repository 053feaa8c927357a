"""Average a net's probabilities over scales of the image and its mirror image, "MS + flip" in published tables.

The paper scores one pass at the image's own size. DeepLab and others report averages: slightly higher scores, at
the cost of one pass per scale and flip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Averaging:
    """Which passes are averaged.

    scales: factors of the image's height and width, each above 0.
    flip: whether the mirror image is scored at every scale as well.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be numbers above 0, at least one, got {list(self.scales)}")

    @property
    def is_none(self) -> bool:
        return self.scales == (1.0,) and not self.flip


def average_probability(score: Callable[[Tensor], Tensor], image: Tensor, averaging: Averaging) -> Tensor:
    """Return the probability of each class, averaged over the passes: (N, C, H, W) float32 in 0..1.

    The image is resized bilinearly, without aligned corners. The softmax is taken at each scale; its probabilities are
    resized back to (H, W) in the same way.

    score: the net: (N, 3, h, w) images to (N, C, h, w) logits.
    image: (N, 3, H, W) RGB, uint8 or float in 0..255.
    averaging: the scales and mirror images.
    """
    size = image.shape[-2:]
    total = torch.zeros((), device=image.device)
    for scale in averaging.scales:
        scaled_size = [max(1, round(scale * side)) for side in size]
        scaled = image if scale == 1 else _resized(image.float(), scaled_size)
        total = total + _resized(score(scaled).softmax(1), size)
        if averaging.flip:
            total = total + _resized(score(scaled.flip(-1)).softmax(1).flip(-1), size)
    return total / (len(averaging.scales) * (1 + averaging.flip))


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    if values.shape[-2:] == torch.Size(size):
        return values
    return F.interpolate(values, list(size), mode="bilinear", align_corners=False)
