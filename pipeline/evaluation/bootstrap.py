"""How far a score would move with other images of the same kind: the bootstrap over images (Efron, 1979).

A split is a sample of images. Drawing as many again from it, with replacement, and scoring those, thousands of times,
shows how much the score depends on which images happen to be in it. It needs the counts of each image, no network.
What it cannot show is what another seed of the training would have given.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (..., 3, C) counts of pixels -> (...)
MAX_DRAWN = 2**20  # draws held at a time: tens of MB, however many images and resamples there are


@dataclass(frozen=True)
class Bootstrap:
    """num_resamples: how often a split is drawn anew.   level: of the interval.   seed: of the draws."""

    num_resamples: int = 10_000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """The range of scores that the middle share `level` of the resamples has; nan if there is nothing to score."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """value: one run's score less the other's.   low, high: its interval.   p_value: two-sided, of no difference."""

    value: float
    low: float
    high: float
    p_value: float


def pixel_acc(counts: NDArray) -> Floats:
    """(..., 3, C) right, labelled and predicted pixels -> (...): the share of valid pixels that are right."""
    with np.errstate(invalid="ignore"):
        return counts[..., 0, :].sum(-1) / counts[..., 1, :].sum(-1)


def mean_iu(counts: NDArray) -> Floats:
    """(..., 3, C) right, labelled and predicted pixels -> (...): by the reference's convention, as Scores.mean_iu."""
    right, label, predicted = np.moveaxis(counts, -2, 0)
    union = label + predicted - right
    there = union > 0
    class_iu = np.divide(right, union, where=there, out=np.zeros(right.shape))
    with np.errstate(invalid="ignore"):  # 0 / 0 = nan: no class in truth or prediction
        return class_iu.sum(-1) / there.sum(-1)


def interval(statistic: Statistic, counts: NDArray[np.int64], bootstrap: Bootstrap) -> Interval:
    """The percentile interval of a statistic of images' summed counts (N, ..., 3, C)."""
    return _interval(resampled(statistic, counts, bootstrap), bootstrap.level)


def paired_difference(
    statistic: Statistic, one: NDArray[np.int64], other: NDArray[np.int64], bootstrap: Bootstrap
) -> Difference:
    """statistic(one) - statistic(other), two runs' counts (N, 3, C) of the same images in the same order.

    Each resample draws the same images for both, so that what makes an image hard for both does not count. The p-value
    is twice the share of resamples on the other side of no difference, and never less than they can tell.
    """
    assert one.shape == other.shape, (one.shape, other.shape)

    def difference(counts: Floats) -> Floats:
        scores = statistic(counts)
        return scores[..., 0] - scores[..., 1]

    both = np.stack((one, other), 1)
    found = resampled(difference, both, bootstrap)
    found = found[~np.isnan(found)]
    within = _interval(found, bootstrap.level)
    fewest = min((found <= 0).sum(), (found >= 0).sum())
    p_value = min(1.0, 2 * (int(fewest) + 1) / (len(found) + 1)) if len(found) else math.nan
    return Difference(float(difference(both.sum(0))), within.low, within.high, p_value)


def in_words(values: Mapping[str, Any], name: str) -> str:
    """A score of a metrics JSON with its interval, if it has one: 0.654 [0.640, 0.668]."""
    score, low, high = (values.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if score is None:
        return "nan"
    return f"{score:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def resampled(statistic: Statistic, counts: NDArray[np.int64], bootstrap: Bootstrap) -> Floats:
    """(num_resamples,): the statistic of each resample of the images' counts (N, ..., 3, C)."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)  # exact: far fewer than 2 ** 53 pixels
    sums = (times @ flat for times in _times_drawn(len(counts), bootstrap))
    return np.concatenate([statistic(chunk.reshape(-1, *counts.shape[1:])) for chunk in sums])


def _times_drawn(num_images: int, bootstrap: Bootstrap) -> Iterator[Floats]:
    """(resamples, num_images): how often each resample has each image, some resamples at a time."""
    random = np.random.default_rng(bootstrap.seed)
    at_once = max(1, MAX_DRAWN // num_images)
    for start in range(0, bootstrap.num_resamples, at_once):
        rows = min(at_once, bootstrap.num_resamples - start)
        drawn = random.integers(0, num_images, (rows, num_images))
        drawn += np.arange(rows)[:, None] * num_images
        times = np.bincount(drawn.reshape(-1), minlength=rows * num_images)
        yield times.reshape(rows, num_images).astype(np.float64)


def _interval(values: Floats, level: float) -> Interval:
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(math.nan, math.nan)
    outside = (1 - level) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(low), float(high))
