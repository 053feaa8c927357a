"""The pixelwise loss in the normalisations of the paper's recipes, and the two variants the paper tried.

In every loss below:

score: (N, C, H, W) float logits.
label: (N, H, W) int64, 0..C-1 or IGNORE_LABEL; ignored pixels do not count.
class_weight: (C,) float factor of each class's pixels; None: 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcn import IGNORE_LABEL


def pixel_cross_entropy(score: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Return the cross entropy summed over each image's pixels and averaged over the batch, 0-dimensional.

    The reference learning rates (1e-10 for FCN-32s) assume the sum: Caffe's normalize=False divides by the batch size
    only.
    """
    return _summed(score, label, class_weight) / score.shape[0]


def mean_pixel_cross_entropy(
    score: Tensor, label: Tensor, num_valid: Tensor | None = None, class_weight: Tensor | None = None
) -> Tensor:
    """Return the cross entropy averaged over valid pixels (Caffe's normalize=True), 0-dimensional; 0 if there are none.

    num_valid: 0-dimensional, above 0: the number of pixels to divide by when a batch is split over workers. None: the
        valid pixels of this batch.
    """
    if num_valid is None:
        num_valid = count_valid(label).clamp(min=1)
    return _summed(score, label, class_weight) / num_valid


def image_mean_cross_entropy(score: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Return the cross entropy averaged over each image's valid pixels, then over the batch, 0-dimensional.

    Every image counts the same, as with Caffe's normalize=True, one image per pass and iter_size (FCN-AlexNet).
    """
    loss = F.cross_entropy(score, label, class_weight, ignore_index=IGNORE_LABEL, reduction="none")
    num_valid = (label != IGNORE_LABEL).sum((1, 2))
    return (loss.sum((1, 2)) / num_valid.clamp(min=1)).mean()


def count_valid(label: Tensor) -> Tensor:
    """Return the number of pixels that are not IGNORE_LABEL, 0-dimensional int64 on label's device."""
    return (label != IGNORE_LABEL).sum()


def balancing_weights(class_pixels: Tensor) -> Tensor:
    """Return (C,) float32 weights inverse to each class's share of the pixels.

    They are scaled so that the mean weight over all pixels is 1. CVPR section 4.4 found that balancing is not needed.

    class_pixels: (C,) number of pixels of each class in the training set; a class without pixels gets 0.
    """
    share = class_pixels.double() / class_pixels.sum()
    occurs = share > 0
    return torch.where(occurs, 1 / (share * occurs.sum()), 0.0).float()


def sampled(label: Tensor, keep: float) -> Tensor:
    """Return `label` with each pixel kept with probability `keep` and otherwise set to IGNORE_LABEL.

    Training on random patches amounts to this: the loss then counts random pixels (CVPR section 3.4).

    keep: probability, above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}")
    return torch.where(torch.rand(label.shape, device=label.device) < keep, label, IGNORE_LABEL)


def _summed(score: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
    return F.cross_entropy(score, label, class_weight, ignore_index=IGNORE_LABEL, reduction="sum")
