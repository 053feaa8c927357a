"""Groups of runs that differ in their seeds alone: intervals over seeds and images.

A group's score is the mean of its runs' scores. Seeds and images are both samples, and the variance of the mean is

    between / k  +  images

between: the variance of the k runs' scores, which has k - 1 degrees of freedom.
images: what other images would change in all runs alike, by the bootstrap over images: each resample draws the same
    images for all runs. What they change in single runs is in `between` already, and is subtracted.

The interval is the mean +- t * sqrt(variance), where t is the mean of both parts' t quantiles, weighted with the parts'
variances (Cochran and Cox, Experimental Designs, 1950). A difference of two groups has the degrees of
freedom of Welch (Biometrika 34, 1947) in its part between seeds. So where images do not matter the interval is that of
Student's t-test, or of Welch's.

A bootstrap that draws seeds as well is too narrow for the three or five that anyone can afford: k seeds drawn with
replacement vary by (k - 1) / k of the right variance, and its ends are those of a normal distribution, not of t with
k - 1 degrees. bench/seeds.py measures the coverage of both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes a second to import

from pipeline.evaluation.bootstrap import Bootstrap, Floats, Statistic, resample

POWER = 0.8  # the chance to settle a difference with the number of seeds that is named
MAX_SEEDS = 1000
LEAST_P = 1e-9

Runs = Sequence[NDArray[np.int64]]  # (N, 3, C) counts of each run, of the same images in the same order


class Between(NamedTuple):
    """The variance of one group's scores between its runs.

    variance: of a single run.
    num_seeds: how many runs it comes from.
    """

    variance: float
    num_seeds: int


@dataclass(frozen=True)
class Estimate:
    """The mean score of a group, or the difference of two groups.

    value: on all images, the mean over seeds.
    between: the variance between seeds, of each group.
    images: the variance between samples of images, without the part that is in `between`.
    num_images: of the split.
    level: of the interval, in 0..1.
    """

    value: float
    between: tuple[Between, ...]
    images: float
    num_images: int
    level: float

    @property
    def low(self) -> float:
        return self.value - self._margin()

    @property
    def high(self) -> float:
        return self.value + self._margin()

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the value is 0."""
        error, quantile = self._spread_of_mean()
        if error == 0 or math.isnan(error):
            return float(self.value == 0) if error == 0 else math.nan

        from scipy.optimize import (
            brentq,
        )  # takes longer to import than a report's scores, which rarely need it

        def excess(p_value: float) -> float:
            return quantile(1 - p_value / 2) * error - abs(self.value)

        return float(brentq(excess, LEAST_P, 1.0)) if excess(LEAST_P) > 0 else LEAST_P  # pyright: ignore[reportArgumentType]

    @property
    def is_settled(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0

    def seeds_to_settle(self) -> int | None:
        """Return the least number of seeds, of each group, that settles a difference of this size with chance POWER.

        None: MAX_SEEDS are not enough, because the images are too few.
        """

        def is_enough(num_seeds: int) -> bool:
            error, quantile = self._spread_of_mean(num_seeds)
            return (quantile((1 + self.level) / 2) + quantile(POWER)) * error <= abs(self.value)

        if not is_enough(MAX_SEEDS):
            return None
        return next(number for number in range(2, MAX_SEEDS + 1) if is_enough(number))

    def _margin(self) -> float:
        error, quantile = self._spread_of_mean()
        return error * quantile((1 + self.level) / 2)

    def _spread_of_mean(self, num_seeds: int | None = None) -> tuple[float, Callable[[float], float]]:
        """Return the standard error, and its quantiles as a function of their probability.

        num_seeds: of each group, in place of the number that there is.
        """
        parts = [
            (variance / (num_seeds or number), (num_seeds or number) - 1) for variance, number in self.between
        ]
        seeds = sum(variance for variance, _ in parts)
        total = seeds + self.images
        if not total > 0:
            return total, lambda _: 0.0
        # Welch's, for two groups
        degrees = seeds**2 / sum(variance**2 / number for variance, number in parts) if seeds else 1.0

        def quantile(probability: float) -> float:
            between = stdtrit(degrees, probability)
            images = stdtrit(max(1, self.num_images - 1), probability)
            return float(seeds * between + self.images * images) / total

        return math.sqrt(total), quantile


def group_score(statistic: Statistic, runs: Runs, bootstrap: Bootstrap) -> Estimate:
    """Return the mean score of at least two runs."""
    counts = np.stack(runs, 1)
    return _estimate(
        [statistic(counts.sum(0))], [resample(statistic, counts, bootstrap)], len(counts), bootstrap.level
    )


def group_difference(
    statistic: Statistic, first: Runs, second: Runs, bootstrap: Bootstrap, *, is_paired: bool
) -> Estimate:
    """Return the mean score of the first group less that of the second.

    is_paired: run i of one group has the chain of run i of the other, such as FCN-16s and the FCN-32s it started from.
    """
    counts = np.stack((*first, *second), 1)
    scores, resamples = statistic(counts.sum(0)), resample(statistic, counts, bootstrap)
    parts = np.split(scores, [len(first)]), np.split(resamples, [len(first)], 1)
    if is_paired:
        (a, b), (c, d) = parts
        return _estimate([a - b], [c - d], len(counts), bootstrap.level)
    return _estimate(*parts, len(counts), bootstrap.level)


def _estimate(
    scores: Sequence[Floats], resamples: Sequence[Floats], num_images: int, level: float
) -> Estimate:
    """Return the mean of the first group's scores, less that of the second if there are two.

    scores: (k,) of each group's runs.
    resamples: (num_resamples, k) of the same runs; each row has the same images for all.
    """
    signs = (1, -1)[: len(scores)]
    means = np.sum([sign * group.mean(1) for sign, group in zip(signs, resamples, strict=True)], 0)
    # Each resample repeats some images, so its variance is (n - 1) / n of the right one
    correction = num_images / max(1, num_images - 1)
    images = correction * _variance(means)
    for group in resamples:
        k = group.shape[1]
        # Var(one run) - Var(mean of k) = interaction * (1 - 1 / k)
        interaction = correction * (np.mean([_variance(run) for run in group.T]) - _variance(group.mean(1)))
        images -= max(0.0, float(interaction)) / (k - 1)
    value = sum(sign * float(group.mean()) for sign, group in zip(signs, scores, strict=True))
    between = tuple(Between(float(group.var(ddof=1)), len(group)) for group in scores)
    return Estimate(value, between, max(0.0, images), num_images, level)


def _variance(values: Floats) -> float:
    """Return the variance of the resamples in which something could be scored."""
    values = values[~np.isnan(values)]
    return float(values.var()) if len(values) else math.nan
