import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import maximum_filter, minimum_filter
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from fcn import IGNORE_LABEL
from fcn.metrics import ConfusionMatrix, best_class, trimap
from fcn.scores import mean_f1, mean_iu, pixel_acc

labels = hnp.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 3, IGNORE_LABEL]))
predictions = hnp.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3))


def test_a_small_case_worked_by_hand():
    scores = ConfusionMatrix(2).merge(torch.tensor([[3, 1], [2, 4]])).scores()
    assert scores.pixel_acc == pytest.approx(7 / 10)
    assert scores.mean_acc == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores.class_iu == pytest.approx((3 / 6, 4 / 7))
    assert scores.mean_iu == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert scores.fw_iu == pytest.approx(0.4 * 3 / 6 + 0.6 * 4 / 7)
    assert scores.class_precision == pytest.approx((3 / 5, 4 / 5))
    assert scores.class_recall == pytest.approx((3 / 4, 4 / 6))
    assert scores.class_f1 == pytest.approx((2 * 3 / 9, 2 * 4 / 11))
    assert scores.mean_f1 == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert scores.mean_precision == pytest.approx(7 / 10)


@given(labels, predictions)
def test_scores_equal_scikit_learns_wherever_a_class_occurs(label, prediction):
    valid = label != IGNORE_LABEL
    truth, guess = label[valid], prediction[valid]
    scores = ConfusionMatrix(4).update(torch.from_numpy(prediction), torch.from_numpy(label)).scores()
    if truth.size == 0:
        assert math.isnan(scores.pixel_acc)
        assert math.isnan(scores.mean_iu)
        assert math.isnan(scores.fw_iu)
        assert math.isnan(scores.mean_f1)
        assert math.isnan(scores.mean_precision)
        return
    occurring = np.union1d(truth, guess)
    iu = jaccard_score(truth, guess, labels=occurring, average=None, zero_division=0)
    recall = recall_score(truth, guess, labels=np.unique(truth), average="macro")
    assert scores.mean_iu == pytest.approx(iu.mean())
    assert [scores.class_iu[c] for c in occurring] == pytest.approx(list(iu))
    assert scores.pixel_acc == pytest.approx(accuracy_score(truth, guess))
    assert scores.mean_acc == pytest.approx(recall)
    assert scores.fw_iu == pytest.approx(jaccard_score(truth, guess, average="weighted", zero_division=0))
    f1 = f1_score(truth, guess, labels=range(4), average=None, zero_division=math.nan)
    precision = precision_score(truth, guess, labels=range(4), average=None, zero_division=math.nan)
    recall = recall_score(truth, guess, labels=range(4), average=None, zero_division=math.nan)
    assert scores.class_f1 == pytest.approx(f1, nan_ok=True)
    assert scores.class_precision == pytest.approx(precision, nan_ok=True)
    assert scores.class_recall == pytest.approx(recall, nan_ok=True)
    assert scores.mean_f1 == pytest.approx(np.nanmean(f1))
    assert scores.mean_precision == pytest.approx(np.nanmean(precision))


@given(labels, predictions)
def test_scores_of_many_counts_at_once_are_those_of_each_in_numpy_as_in_torch(label, prediction):
    matrices = [
        ConfusionMatrix(4).update(torch.from_numpy(guess), torch.from_numpy(truth))
        for guess, truth in zip(prediction, label, strict=True)
    ]
    counts = torch.stack([matrix.per_class() for matrix in matrices])
    expected = [matrix.scores() for matrix in matrices]
    with np.errstate(invalid="ignore"):  # 0 / 0
        in_numpy = [score(counts.numpy()).tolist() for score in (mean_iu, pixel_acc, mean_f1)]
    in_torch = [score(counts.double()).tolist() for score in (mean_iu, pixel_acc, mean_f1)]
    for ious, accuracies, f1s in (in_numpy, in_torch):
        assert ious == pytest.approx([scores.mean_iu for scores in expected], nan_ok=True)
        assert accuracies == pytest.approx([scores.pixel_acc for scores in expected], nan_ok=True)
        assert f1s == pytest.approx([scores.mean_f1 for scores in expected], nan_ok=True)


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("reference", 0.4259),
        ("ground_truth", 0.6389),
        ("absent_is_1", 0.5694),
        ("absent_is_0", 0.3194),
        ("plain_mean", math.nan),
    ],
)
def test_each_peers_convention_gives_the_value_measured_on_the_peer(convention, expected):
    """Class 2 is predicted and has no label, class 3 is neither."""
    hist = torch.tensor([[7, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = ConfusionMatrix(4).merge(hist).scores(convention)
    assert scores.mean_iu == pytest.approx(expected, abs=5e-5, nan_ok=True)
    assert scores.class_iu[2:] == pytest.approx((0, math.nan), nan_ok=True)


def test_an_unknown_convention_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"'voc'.* reference, ground_truth"):
        ConfusionMatrix(2).scores("voc")


def test_counting_in_parts_and_merging_equals_counting_at_once():
    prediction, label = torch.randint(0, 3, (2, 6, 50))
    whole = ConfusionMatrix(3).update(prediction, label)
    first = ConfusionMatrix(3).update(prediction[:2], label[:2])
    second = ConfusionMatrix(3).update(prediction[2:4], label[2:4]).update(prediction[4:], label[4:])
    assert torch.equal(first.merge(second.hist).hist, whole.hist)
    assert whole.hist.dtype == torch.int64


def test_rows_are_labels_columns_predictions_and_void_does_not_count():
    label = torch.tensor([0, 0, 1, 1, 2, IGNORE_LABEL])
    prediction = torch.tensor([0, 1, 1, 1, 0, 2])
    matrix = ConfusionMatrix(3).update(prediction, label)
    assert matrix.hist.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix.per_class().tolist() == [[1, 2, 0], [2, 2, 1], [2, 3, 0]]
    other = ConfusionMatrix(3).update(torch.tensor([2]), torch.tensor([2]))
    assert matrix.add(other).per_class().tolist() == [[1, 2, 1], [2, 2, 2], [2, 3, 1]]


def test_a_prediction_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) .*\(3, 2\)"):
        ConfusionMatrix(2).update(torch.zeros(2, 3), torch.zeros(3, 2))


@given(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]), st.data())
def test_values_of_any_integer_type_are_counted_or_refused_when_scored(dtype, data):
    limits = torch.iinfo(dtype)
    extremes = [value for value in (limits.min, limits.max, -1, 3, 255, 256, 2**32) if value <= limits.max]
    extremes = [value for value in extremes if value >= limits.min]
    values = st.lists(st.one_of(st.integers(0, 2), st.sampled_from(extremes)), min_size=5, max_size=5)
    label, prediction = data.draw(values), data.draw(values)
    confusion = ConfusionMatrix(3).update(
        torch.tensor(prediction, dtype=dtype), torch.tensor(label, dtype=dtype)
    )
    pairs = [(truth, guess) for truth, guess in zip(label, prediction, strict=True) if truth != IGNORE_LABEL]
    foreign = sum(truth not in range(3) or guess not in range(3) for truth, guess in pairs)
    if foreign == 0:
        assert confusion.hist.tolist() == [[pairs.count((t, p)) for p in range(3)] for t in range(3)]
        return
    for matrix in (confusion, ConfusionMatrix(3).add(confusion)):
        with pytest.raises(ValueError, match=f"^{foreign} pixels .*0..2 nor 255"):
            matrix.scores()


@given(
    hnp.arrays(np.uint8, (2, 7, 9), elements=st.sampled_from([0, 0, 0, 1, IGNORE_LABEL])), st.integers(1, 3)
)
def test_the_trimap_is_the_band_where_a_window_holds_two_values(label, radius):
    """Recomputed with scipy's greyscale morphology."""
    for image, band in zip(label, trimap(torch.from_numpy(label), radius), strict=True):
        high = maximum_filter(image, 2 * radius + 1, mode="nearest")
        low = minimum_filter(image, 2 * radius + 1, mode="nearest")
        assert np.array_equal(band.numpy(), np.where(high != low, image, IGNORE_LABEL))


def test_a_trimap_of_no_width_is_refused():
    with pytest.raises(ValueError, match="radius"):
        trimap(torch.zeros(1, 3, 3), 0)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
        elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1.0, np.inf]),  # many are equal
    )
)
def test_the_best_class_is_the_argmax_the_first_of_equal_ones(score):
    assert torch.equal(best_class(torch.from_numpy(score)), torch.from_numpy(score.argmax(1)))


@pytest.mark.parametrize("num_classes", [256, 257, 400])
def test_the_best_of_many_classes_is_found(num_classes):
    score = torch.randn(2, num_classes, 7, 5)
    before = score.clone()
    best = best_class(score)
    assert (best.dtype, best.equal(score.argmax(1))) == (torch.int64, True)
    assert torch.equal(score, before)
