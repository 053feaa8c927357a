"""The bootstrap over images (Efron, 1979): intervals of a score, and paired differences of two runs.

A split is a sample of images. Each resample draws as many images from it, with replacement, and scores their summed
counts. This measures how much the score depends on which images are in the split. It needs no network, only the counts
of each image. It does not measure what another seed of the training would change: see seeds.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn import scores

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (..., 3, C) right, labelled and predicted pixels -> (...)
MEAN_OF = {  # the scores of a metrics JSON that are the mean of another over the classes that have it
    "mean_iu": "class_iu",
    "mean_acc": "class_recall",
    "mean_f1": "class_f1",
    "mean_precision": "class_precision",
}
MAX_DRAWN = (
    2**20
)  # draws, or counts, held at a time: tens of MB, however many images, resamples and runs there are


@dataclass(frozen=True)
class Bootstrap:
    """The settings of a bootstrap.

    num_resamples: how many resamples are drawn.
    level: the share of the resamples that an interval holds, in 0..1.
    seed: of the draws.
    """

    num_resamples: int = 10_000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """The range of the middle `level` of the resamples' scores; NaN if there is nothing to score."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference between two runs' scores.

    value: the first run's score less the second's.
    low: the lower end of its interval.
    high: the upper end of its interval.
    p_value: two-sided, of the hypothesis that the runs do not differ.
    """

    value: float
    low: float
    high: float
    p_value: float


def pixel_acc(counts: NDArray) -> Floats:
    """Return the share of valid pixels that are right: (..., 3, C) counts -> (...)."""
    with np.errstate(invalid="ignore"):  # 0 / 0 = NaN: no valid pixel
        return scores.pixel_acc(counts)


def mean_iu(counts: NDArray) -> Floats:
    """Return the mean IU by the reference's convention: (..., 3, C) counts -> (...)."""
    with np.errstate(invalid="ignore"):
        return scores.mean_iu(counts)


def mean_f1(counts: NDArray) -> Floats:
    """Return the mean F1 over the classes of mean IU: (..., 3, C) counts -> (...)."""
    with np.errstate(invalid="ignore"):
        return scores.mean_f1(counts)


def intervals(
    statistics: Mapping[str, Statistic], counts: NDArray[np.int64], bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Return the percentile interval of each statistic of the images' summed counts, (N, ..., 3, C), by name.

    All are of the same resamples.
    """

    def stacked(sums: Floats) -> Floats:
        return np.stack([statistic(sums) for statistic in statistics.values()], -1)

    resamples = resample(stacked, counts, bootstrap)
    return {
        name: _interval(values, bootstrap.level) for name, values in zip(statistics, resamples.T, strict=True)
    }


def paired_difference(
    statistic: Statistic, first: NDArray[np.int64], second: NDArray[np.int64], bootstrap: Bootstrap
) -> Difference:
    """Return statistic(first) - statistic(second) with its interval and p-value.

    Each resample draws the same images for both runs, so the difficulty of an image cancels out. The p-value is twice
    the share of resamples in which the difference has the other sign. Its minimum is 2 / (num_resamples + 1).

    first, second: (N, 3, C) counts of two runs, of the same images in the same order.
    """
    assert first.shape == second.shape, (first.shape, second.shape)

    def difference(counts: Floats) -> Floats:
        scores = statistic(counts)
        return scores[..., 0] - scores[..., 1]

    both = np.stack((first, second), 1)
    resamples = resample(difference, both, bootstrap)
    resamples = resamples[~np.isnan(resamples)]
    within = _interval(resamples, bootstrap.level)
    num_opposite = int(min((resamples <= 0).sum(), (resamples >= 0).sum()))
    p_value = min(1.0, 2 * (num_opposite + 1) / (len(resamples) + 1)) if len(resamples) else math.nan
    return Difference(float(difference(both.sum(0))), within.low, within.high, p_value)


def with_interval(values: Mapping[str, Any], name: str) -> str:
    """Return a score of a metrics JSON as text, with its interval if it has one: 0.654 [0.640, 0.668].

    A mean over fewer classes than there are is marked as such: 1.000 (1 of 2 classes). A score that a file of an
    earlier version does not have is "-". A mean over seeds has their standard deviation: 0.654 [0.640, 0.668], sd
    0.005.
    """
    score, low, high = (values.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if score is None:
        return "nan" if name in values else "-"
    text = f"{score:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")
    if (spread := values.get(f"{name}_sd")) is not None:
        text += f", sd {spread:.3f}"
    by_class = values.get(MEAN_OF.get(name, ""), {})
    if num_missing := sum(value is None for value in by_class.values()):
        text += f" ({len(by_class) - num_missing} of {len(by_class)} classes)"
    return text


def resample(statistic: Statistic, counts: NDArray[np.int64], bootstrap: Bootstrap) -> Floats:
    """Return the statistic of each resample of the images' counts: (N, ..., 3, C) -> (num_resamples, ...).

    Each resample has the same images for all of "...".
    """
    flat = counts.reshape(len(counts), -1).astype(np.float64)  # exact: far fewer than 2 ** 53 pixels
    sums = (times @ flat for times in _draw(*flat.shape, bootstrap))
    return np.concatenate([statistic(chunk.reshape(-1, *counts.shape[1:])) for chunk in sums])


def _draw(num_images: int, num_counts: int, bootstrap: Bootstrap) -> Iterator[Floats]:
    """Yield (resamples, num_images) chunks: how often each resample holds each image.

    num_counts: of an image; as many are held of each resample of a chunk.
    """
    random = np.random.default_rng(bootstrap.seed)
    chunk = max(1, MAX_DRAWN // max(num_images, num_counts))
    for start in range(0, bootstrap.num_resamples, chunk):
        rows = min(chunk, bootstrap.num_resamples - start)
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
