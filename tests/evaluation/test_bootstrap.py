"""Intervals and paired differences, compared with scipy's bootstrap and with scores of the confusion matrix."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap

from fcn.metrics import ConfusionMatrix
from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import (
    Bootstrap,
    Interval,
    Statistic,
    intervals,
    mean_f1,
    mean_iu,
    paired_difference,
    pixel_acc,
)


def counts_of(num_images: int, num_classes: int, seed: int = 0, right: float = 0.7) -> np.ndarray:
    """(N, 3, C) of images whose pixels are right with this chance, else of any class."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(num_images):
        label = random.integers(0, num_classes, 50)
        guess = np.where(random.random(50) < right, label, random.integers(0, num_classes, 50))
        matrix = ConfusionMatrix(num_classes).update(torch.from_numpy(guess), torch.from_numpy(label))
        rows.append(matrix.per_class().numpy())
    return np.stack(rows)


def interval(statistic: Statistic, counts: np.ndarray, plan: Bootstrap) -> Interval:
    return intervals({"it": statistic}, counts, plan)["it"]


def by_scipy(statistic, *samples: np.ndarray, **options) -> tuple[float, float]:
    """The percentile interval of a statistic of images' numbers, of draws by the same generator."""
    result = scipy_bootstrap(
        samples,
        statistic,
        vectorized=False,
        paired=len(samples) > 1,
        method="percentile",
        confidence_level=options["level"],
        n_resamples=options["num_resamples"],
        rng=np.random.default_rng(options["seed"]),
    )
    return tuple(map(float, result.confidence_interval))


PLAN = {"num_resamples": 300, "level": 0.9, "seed": 3}


@pytest.mark.parametrize("statistic", [mean_iu, pixel_acc, mean_f1])
def test_the_interval_is_scipys_for_the_same_draws(statistic):
    counts = counts_of(12, 4)
    result = interval(statistic, counts, Bootstrap(**PLAN))
    low, high = by_scipy(lambda at: float(statistic(counts[at.astype(int)].sum(0))), np.arange(12), **PLAN)
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-12)
    assert result.low < statistic(counts.sum(0)) < result.high


def test_several_scores_have_the_intervals_that_each_has_alone():
    counts = counts_of(12, 4)
    statistics = {"iu": mean_iu, "f1": mean_f1, "acc": pixel_acc}
    expected = {name: interval(statistic, counts, Bootstrap(300)) for name, statistic in statistics.items()}
    assert intervals(statistics, counts, Bootstrap(300)) == expected


def test_the_interval_of_a_difference_is_scipys_of_paired_draws():
    one, other = counts_of(12, 4, right=0.8), counts_of(12, 4, right=0.7, seed=1)
    result = paired_difference(mean_iu, one, other, Bootstrap(**PLAN))

    def difference(at, _):
        at = at.astype(int)
        return float(mean_iu(one[at].sum(0)) - mean_iu(other[at].sum(0)))

    low, high = by_scipy(difference, np.arange(12), np.arange(12), **PLAN)
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-12)
    assert result.value == pytest.approx(mean_iu(one.sum(0)) - mean_iu(other.sum(0)), abs=1e-15)


@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_statistics_are_the_scores_of_the_confusion_matrix(num_images, num_classes, seed):
    random = np.random.default_rng(seed)
    label = torch.from_numpy(random.integers(0, num_classes, (num_images, 7)))
    guess = torch.from_numpy(random.integers(0, max(1, num_classes - 1), (num_images, 7)))
    label[random.random((num_images, 7)) < 0.4] = 255
    counts = np.stack(
        [
            ConfusionMatrix(num_classes).update(*pair).per_class().numpy()
            for pair in zip(guess, label, strict=True)
        ]
    )
    scores = ConfusionMatrix(num_classes).update(guess, label).scores()
    assert mean_iu(counts.sum(0)) == pytest.approx(scores.mean_iu, nan_ok=True)
    assert pixel_acc(counts.sum(0)) == pytest.approx(scores.pixel_acc, nan_ok=True)
    assert mean_f1(counts.sum(0)) == pytest.approx(scores.mean_f1, nan_ok=True)
    result = interval(mean_iu, counts, Bootstrap(100))
    if not math.isnan(result.low):
        assert 0 <= result.low <= result.high <= 1


def test_a_seed_gives_the_same_interval_always_and_however_many_are_drawn_at_once(monkeypatch):
    counts = counts_of(30, 3)
    result = interval(mean_iu, counts, Bootstrap(500, seed=1))
    assert result == interval(mean_iu, counts, Bootstrap(500, seed=1))
    assert result != interval(mean_iu, counts, Bootstrap(500, seed=2))
    monkeypatch.setattr(bootstrap, "MAX_DRAWN", 7 * 30)
    assert result == interval(mean_iu, counts, Bootstrap(500, seed=1))


def test_memory_does_not_grow_with_resamples_runs_and_classes():
    counts = np.random.default_rng(0).integers(0, 100, (50, 10, 3, 150))
    tracemalloc.start()
    bootstrap.resample(mean_iu, counts, Bootstrap(2000))  # 72 MB, if all were held at once
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


def test_void_images_alone_have_no_interval_and_among_others_do_no_harm():
    nothing = np.zeros((4, 3, 2), np.int64)
    result = interval(mean_iu, nothing, Bootstrap(100))
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert math.isnan(paired_difference(mean_iu, nothing, nothing, Bootstrap(100)).p_value)
    some = np.concatenate((nothing[:1], counts_of(1, 2)))
    result = interval(mean_iu, some, Bootstrap(100))  # a fourth of the resamples has no pixel
    assert result.low == pytest.approx(float(mean_iu(some.sum(0)))) == pytest.approx(result.high)


def test_a_run_does_not_differ_from_itself():
    counts = counts_of(20, 3)
    result = paired_difference(mean_iu, counts, counts, Bootstrap(200))
    assert (result.value, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_pairing_separates_runs_whose_intervals_overlap():
    """Images differ more from each other than the runs do; one run is better on every image."""
    label = np.full(40, 100)
    right = np.random.default_rng(0).integers(20, 90, 40)
    runs = []
    for better in (2, 0):
        good, wrong = right + better, label - right - better
        counts = np.zeros((40, 3, 2), np.int64)
        counts[:, 0, 0], counts[:, 1, 0], counts[:, 2, 0], counts[:, 2, 1] = good, label, good, wrong
        runs.append(counts)
    plan = Bootstrap(1000)
    result = paired_difference(pixel_acc, *runs, plan)
    assert (result.value, result.low, result.high) == pytest.approx((0.02,) * 3)
    assert result.p_value == 2 / 1001  # the least that 1000 resamples can tell
    assert interval(pixel_acc, runs[0], plan).low < interval(pixel_acc, runs[1], plan).high
    back = paired_difference(pixel_acc, *reversed(runs), plan)
    assert (back.value, back.p_value) == (-result.value, result.p_value)


def test_two_runs_that_differ_by_chance_alone_are_rarely_told_apart():
    """At 5 %, one in twenty: of 60 pairs of equally good runs, no more than chance would give 1 time in 1000."""
    result = [
        paired_difference(
            pixel_acc, counts_of(30, 2, 2 * seed), counts_of(30, 2, 2 * seed + 1), Bootstrap(400)
        ).p_value
        for seed in range(60)
    ]
    assert sum(p < 0.05 for p in result) <= 10


def test_a_score_reads_with_its_interval_if_it_has_one():
    values = {"mean_iu": 0.6543, "mean_iu_low": 0.64, "mean_iu_high": 0.668}
    assert bootstrap.with_interval(values, "mean_iu") == "0.654 [0.640, 0.668]"
    assert bootstrap.with_interval({"mean_iu": 0.6543}, "mean_iu") == "0.654"
    assert bootstrap.with_interval({"mean_iu": None, "mean_iu_low": None}, "mean_iu") == "nan"
    assert bootstrap.with_interval(values, "mean_f1") == "-"  # a file of an earlier version


@pytest.mark.parametrize(
    ("name", "by_class"),
    [("mean_iu", "class_iu"), ("mean_f1", "class_f1"), ("mean_precision", "class_precision")],
)
def test_a_mean_over_some_of_the_classes_never_stands_alone(name, by_class):
    values = {name: 1.0, f"{name}_low": 1.0, f"{name}_high": 1.0, "pixel_acc": 1.0}
    values |= {by_class: {"background": 1.0, "lesion": None}}
    assert bootstrap.with_interval(values, name) == "1.000 [1.000, 1.000] (1 of 2 classes)"
    assert bootstrap.with_interval(values, "pixel_acc") == "1.000"
    values |= {by_class: {"background": 1.0, "lesion": 1.0}}
    assert bootstrap.with_interval(values, name) == "1.000 [1.000, 1.000]"
