"""The pixelwise loss, in the two normalisations the paper's recipes use."""

import torch.nn.functional as F
from torch import Tensor

from fcn import IGNORE_LABEL


def pixel_cross_entropy(score: Tensor, label: Tensor) -> Tensor:
    """Cross entropy summed over each image's pixels, averaged over the batch.

    score: (N, C, H, W) float logits.   label: (N, H, W) int64, 0..C-1 or IGNORE_LABEL (not counted).
    Summed, because the reference learning rates (1e-10 for FCN-32s) assume it: Caffe's normalize=False divides by
    the batch size only.
    """
    return _summed(score, label) / score.shape[0]


def mean_pixel_cross_entropy(score: Tensor, label: Tensor, num_valid: Tensor | None = None) -> Tensor:
    """Cross entropy averaged over valid pixels (Caffe's normalize=True); 0 if there are none. Shapes as above.

    num_valid: the number to divide by instead of this batch's valid pixels, for a batch split over workers.
    """
    if num_valid is None:
        num_valid = count_valid(label)
    return _summed(score, label) / num_valid.clamp(min=1)


def count_valid(label: Tensor) -> Tensor:
    """The number of pixels that are not IGNORE_LABEL, a 0-dimensional int64 tensor on label's device."""
    return (label != IGNORE_LABEL).sum()


def _summed(score: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(score, label, ignore_index=IGNORE_LABEL, reduction="sum")
