"""Intervals over seeds and images, compared with scipy's tests where only seeds vary, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.seeds import NUM_IMAGES, WORLDS, coverage, draw_counts, true_score
from pipeline.evaluation import seeds
from pipeline.evaluation.bootstrap import Bootstrap, intervals, mean_iu, pixel_acc
from pipeline.evaluation.seeds import group_difference, group_score

FEW = Bootstrap(200, 0.95, 1)


def equal_images(*scores: float, num_images: int = 20) -> list[np.ndarray]:
    """Runs of these pixel accuracies; each image is like every other, so that another sample changes nothing."""
    runs = []
    for score in scores:
        right = round(1000 * score)
        counts = np.array([[right, 0], [1000, 0], [right, 1000 - right]])
        runs.append(np.broadcast_to(counts, (num_images, 3, 2)).copy())
    return runs


def test_where_images_do_not_matter_the_interval_of_a_mean_is_students():
    scores = [0.71, 0.74, 0.69, 0.78]
    result = group_score(pixel_acc, equal_images(*scores), FEW)
    expected = stats.t.interval(0.95, 3, np.mean(scores), stats.sem(scores))
    assert result.value == pytest.approx(np.mean(scores))
    assert (result.low, result.high) == pytest.approx(expected)
    assert result.between[0].variance == pytest.approx(np.var(scores, ddof=1))


def test_where_seeds_do_not_matter_the_interval_is_that_of_the_images():
    """Three equal runs are no more than one: the images' interval stays as wide."""
    run = draw_counts(WORLDS["images differ most"], np.random.default_rng(0), 1, NUM_IMAGES)[0, 0]
    settings = Bootstrap(4000, 0.95, 1)
    result = group_score(mean_iu, [run] * 3, settings)
    images = intervals({"mean_iu": mean_iu}, run, settings)["mean_iu"]
    assert result.between[0].variance == 0
    assert result.high - result.low == pytest.approx(images.high - images.low, rel=0.08)


@pytest.mark.parametrize("second", [[0.70, 0.71, 0.75], [0.60, 0.9, 0.75, 0.7]])
def test_a_difference_of_two_groups_is_welchs(second):
    first = [0.78, 0.75, 0.79]
    result = group_difference(pixel_acc, equal_images(*first), equal_images(*second), FEW, is_paired=False)
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.is_settled == (expected.pvalue < 0.05)


def test_a_difference_of_nets_of_the_same_chains_is_that_of_pairs():
    first, second = [0.78, 0.60, 0.70], [0.76, 0.59, 0.67]
    result = group_difference(pixel_acc, equal_images(*first), equal_images(*second), FEW, is_paired=True)
    expected = stats.ttest_rel(first, second)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_group_does_not_differ_from_itself():
    runs = list(draw_counts(WORLDS["seeds suit images"], np.random.default_rng(0), 3, NUM_IMAGES)[0])
    result = group_difference(mean_iu, runs, runs, FEW, is_paired=True)
    assert (result.value, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert not result.is_settled


def test_the_number_of_seeds_that_settles_a_difference_has_the_power_that_is_named():
    """The power of a t-test by its noncentral distribution, for the seeds' variance that was measured."""
    first, second = [0.72, 0.75, 0.78, 0.74], [0.70, 0.73, 0.76, 0.70]
    result = group_difference(pixel_acc, equal_images(*first), equal_images(*second), FEW, is_paired=False)
    number = result.seeds_to_settle()
    assert number
    variance = np.var(first, ddof=1) + np.var(second, ddof=1)

    def power(k: int) -> float:
        degrees = variance**2 / ((np.var(first, ddof=1) ** 2 + np.var(second, ddof=1) ** 2) / (k - 1))
        effect = result.value / math.sqrt(variance / k)
        return float(stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, effect))

    assert power(number) == pytest.approx(seeds.POWER, abs=0.05)
    assert power(number - 2) < seeds.POWER


def test_no_number_of_seeds_settles_what_the_images_are_too_few_for():
    random = np.random.default_rng(3)
    groups = []
    for _ in range(2):
        right = random.integers(400, 600, 12)
        label = np.full(12, 1000)
        run = np.stack((right, label, right, 0 * right, 0 * right, label - right), 1).reshape(12, 2, 3)
        groups.append([run.transpose(0, 2, 1)] * 3)
    result = group_difference(pixel_acc, *groups, FEW, is_paired=False)
    assert not result.is_settled
    assert result.seeds_to_settle() is None


def test_void_images_alone_have_no_interval():
    nothing = [np.zeros((4, 3, 2), np.int64)] * 2
    result = group_score(mean_iu, nothing, FEW)
    assert math.isnan(result.low)
    assert not result.is_settled


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_the_interval_of_few_seeds_covers_what_it_should_and_a_bootstrap_of_seeds_does_not(num_seeds):
    """bench/seeds.py has all worlds, with more draws."""
    world = WORLDS["seeds differ most"]
    truth = true_score(world, np.random.default_rng(0), 2000)
    share, naive, _ = coverage(world, truth, 1, num_seeds, num_draws=300, num_resamples=100)
    assert 0.90 <= share <= 0.99
    assert naive < 0.90
