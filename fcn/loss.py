"""The pixelwise loss: its terms, their weighted sum, and the normalisations of the paper's recipes.

The paper's loss is cross entropy alone. A term gives the loss of each pixel, a normalisation makes one number of it.
In every function:

score: (N, C, H, W) float logits.
label: (N, H, W) int64, 0..C-1 or IGNORE_LABEL; ignored pixels do not count.
class_weight: (C,) float factor of each class's pixels; None: 1.
loss: (N, H, W) float, the loss of each pixel; 0 at ignored pixels.
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fcn import IGNORE_LABEL

# Terms


def cross_entropy(
    score: Tensor, label: Tensor, class_weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the cross entropy of each pixel.

    smoothing: share of the target that is spread evenly over all classes, in 0..1 (Szegedy et al., CVPR 2016).
    """
    loss = F.cross_entropy(
        score, label, ignore_index=IGNORE_LABEL, reduction="none", label_smoothing=smoothing
    )
    return _weighted(loss, label, class_weight)


def focal(score: Tensor, label: Tensor, class_weight: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of each pixel: (1 - p) ** gamma times its cross entropy (Lin et al., ICCV 2017).

    p is the probability of the pixel's class, so pixels that are easy count little.

    gamma: at least 0; 0: cross entropy.
    """
    loss = cross_entropy(score, label)
    # 1 - p. Not 0, where the power has no derivative below a gamma of 1
    miss = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny)
    return _weighted(miss**gamma * loss, label, class_weight)


def dice(score: Tensor, label: Tensor) -> Tensor:
    """Return the soft Dice loss of each pixel's image (Milletari et al., 3DV 2016, without the squares).

    Of one class it is 1 - 2 sum(p t) / (sum(p) + sum(t)) over the image's valid pixels, where p is the probability and
    t is 1 at pixels of the class, else 0. The loss of an image is the mean over the classes in its label. It stands at
    each of its valid pixels, so it is normalised as the other terms are. No image depends on another: the gradients
    are those of any split of a batch.
    """
    valid = label != IGNORE_LABEL
    classes = torch.arange(score.shape[1], device=label.device)[:, None, None]
    target = label[:, None] == classes
    probability = score.softmax(1) * valid[:, None]
    overlap = (probability * target).sum((2, 3))
    num_labelled = target.sum((2, 3))
    size = (probability.sum((2, 3)) + num_labelled).clamp(min=1)  # above 1 for a class in the label
    occurs = num_labelled > 0
    image_loss = ((1 - 2 * overlap / size) * occurs).sum(1) / occurs.sum(1).clamp(min=1)
    return image_loss[:, None, None] * valid


def weighted_sum(
    score: Tensor,
    label: Tensor,
    weights: Mapping[str, float],
    class_weight: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    gamma: float = 2.0,
) -> Tensor:
    """Return the sum of the terms of each pixel, each times its weight.

    weights: by term, "cross_entropy", "focal" or "dice"; at least one is not 0.
    class_weight: of cross entropy and focal; Dice counts all classes the same.
    smoothing: of cross entropy.
    gamma: of focal.
    """
    terms = {
        "cross_entropy": partial(cross_entropy, score, label, class_weight, smoothing),
        "focal": partial(focal, score, label, class_weight, gamma),
        "dice": partial(dice, score, label),
    }
    return torch.stack([weight * terms[name]() for name, weight in weights.items() if weight]).sum(0)


# Normalisations


def sum_over_pixels(loss: Tensor) -> Tensor:
    """Return the loss summed over each image's pixels and averaged over the batch, 0-dimensional.

    The reference learning rates (1e-10 for FCN-32s) assume the sum: Caffe's normalize=False divides by the batch size
    only.
    """
    return loss.sum() / len(loss)


def mean_over_pixels(loss: Tensor, num_valid: Tensor) -> Tensor:
    """Return the loss averaged over valid pixels (Caffe's normalize=True), 0-dimensional.

    num_valid: 0-dimensional, above 0: the number of pixels to divide by; of the whole batch when it is split over
        workers.
    """
    return loss.sum() / num_valid


def mean_over_images(loss: Tensor, label: Tensor) -> Tensor:
    """Return the loss averaged over each image's valid pixels, then over the batch, 0-dimensional.

    Every image counts the same, as with Caffe's normalize=True, one image per pass and iter_size (FCN-AlexNet).
    """
    num_valid = (label != IGNORE_LABEL).sum((1, 2))
    return (loss.sum((1, 2)) / num_valid.clamp(min=1)).mean()


def pixel_cross_entropy(score: Tensor, label: Tensor) -> Tensor:
    """Return the cross entropy summed over each image's pixels and averaged over the batch, 0-dimensional."""
    return sum_over_pixels(cross_entropy(score, label))


def mean_pixel_cross_entropy(score: Tensor, label: Tensor) -> Tensor:
    """Return the cross entropy averaged over the batch's valid pixels, 0-dimensional; 0 if there are none."""
    return mean_over_pixels(cross_entropy(score, label), count_valid(label).clamp(min=1))


# Pixels and classes that count


def count_valid(label: Tensor) -> Tensor:
    """Return the number of pixels that are not IGNORE_LABEL, 0-dimensional int64 on label's device."""
    return (label != IGNORE_LABEL).sum()


def inverse_weights(class_pixels: Tensor) -> Tensor:
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


def _weighted(loss: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Return the loss of each pixel times the weight of its class."""
    if class_weight is None:
        return loss
    return loss * class_weight[label.clamp(max=len(class_weight) - 1)]  # at ignored pixels, 0 times any
