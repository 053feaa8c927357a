"""The pixelwise loss, in the normalisations the paper's recipes use, and the two variants it tried."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcn import IGNORE_LABEL


def pixel_cross_entropy(score: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Cross entropy summed over each image's pixels, averaged over the batch.

    score: (N, C, H, W) float logits.   label: (N, H, W) int64, 0..C-1 or IGNORE_LABEL (not counted).
    class_weight: (C,) factor of each class's pixels.
    Summed, because the reference learning rates (1e-10 for FCN-32s) assume it: Caffe's normalize=False divides by
    the batch size only.
    """
    return _summed(score, label, class_weight) / score.shape[0]


def mean_pixel_cross_entropy(
    score: Tensor, label: Tensor, num_valid: Tensor | None = None, class_weight: Tensor | None = None
) -> Tensor:
    """Cross entropy averaged over valid pixels (Caffe's normalize=True); 0 if there are none. Shapes as above.

    num_valid: what to divide by, above 0, instead of this batch's valid pixels, for a batch split over workers.
    """
    if num_valid is None:
        num_valid = count_valid(label).clamp(min=1)
    return _summed(score, label, class_weight) / num_valid


def image_mean_cross_entropy(score: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Cross entropy averaged over each image's valid pixels, then over the batch: every image has the same say.

    What Caffe's normalize=True with one image a pass and iter_size does (FCN-AlexNet). Shapes as above.
    """
    loss = F.cross_entropy(score, label, class_weight, ignore_index=IGNORE_LABEL, reduction="none")
    num_valid = (label != IGNORE_LABEL).sum((1, 2))
    return (loss.sum((1, 2)) / num_valid.clamp(min=1)).mean()


def count_valid(label: Tensor) -> Tensor:
    """The number of pixels that are not IGNORE_LABEL, a 0-dimensional int64 tensor on label's device."""
    return (label != IGNORE_LABEL).sum()


def balancing_weights(class_pixels: Tensor) -> Tensor:
    """(C,) float32 weights that give every class the same say: inverse to its share, 1 for a pixel on average.

    class_pixels: (C,) counts over the training set; a class without pixels gets 0. CVPR 4.4 found balancing needless.
    """
    share = class_pixels.double() / class_pixels.sum()
    occurs = share > 0
    return torch.where(occurs, 1 / (share * occurs.sum()), 0.0).float()


def sampled(label: Tensor, keep: float) -> Tensor:
    """`label` with each pixel kept with probability `keep` and otherwise set to IGNORE_LABEL.

    What patchwise training amounts to (CVPR 3.4): patches drawn at random are pixels of the loss drawn at random.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}")
    return torch.where(torch.rand(label.shape, device=label.device) < keep, label, IGNORE_LABEL)


def _summed(score: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
    return F.cross_entropy(score, label, class_weight, ignore_index=IGNORE_LABEL, reduction="sum")
