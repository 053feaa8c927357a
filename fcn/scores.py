"""Pixel accuracy and mean IU from counts of pixels, for a confusion matrix and a bootstrap's resamples alike.

counts: (..., 3, C), a torch tensor or a numpy array, neither of which is imported here. Per class: true positives,
    labelled pixels, predicted pixels, as ConfusionMatrix.per_class returns them.
"""

from typing import Any


def pixel_acc(counts: Any) -> Any:
    """Return the share of valid pixels that are right, (...) in 0..1; nan if there are no pixels."""
    return counts[..., 0, :].sum(-1) / counts[..., 1, :].sum(-1)


def mean_iu(counts: Any) -> Any:
    """Return the mean intersection over union, (...) in 0..1; nan if there are no pixels.

    By the reference's convention, the mean is over the classes in label or prediction (score.py).
    """
    right, label, predicted = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    union = label + predicted - right
    occurs = union > 0
    class_iu = right / (union + ~occurs)  # 0 / 1 for a class that does not occur
    return class_iu.sum(-1) / occurs.sum(-1)
