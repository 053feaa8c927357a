"""Pixel accuracy, mean IU and mean F1 from counts of pixels, for a confusion matrix and a bootstrap's resamples alike.

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
    return _mean_ratio(right, label + predicted - right)


def mean_f1(counts: Any) -> Any:
    """Return the mean F1, which is the Dice coefficient, over the classes of mean IU; (...) in 0..1."""
    right, label, predicted = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    return _mean_ratio(2 * right, label + predicted)


def _mean_ratio(part: Any, whole: Any) -> Any:
    """Return the mean of part / whole over the classes whose whole is above 0."""
    occurs = whole > 0
    ratio = part / (whole + ~occurs)  # 0 / 1 for a class that does not occur
    return ratio.sum(-1) / occurs.sum(-1)
