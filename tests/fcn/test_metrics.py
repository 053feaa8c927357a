import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import maximum_filter, minimum_filter
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from fcn import IGNORE_LABEL
from fcn.metrics import ConfusionMatrix, best_class, trimap


def scored(hist: list[list[int]]):
    """Scores of a matrix given as counts, by drawing its pixels one by one."""
    pairs = [(t, p) for t, row in enumerate(hist) for p, count in enumerate(row) for _ in range(count)]
    label, prediction = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return ConfusionMatrix(len(hist)).update(prediction, label).scores()


def test_a_small_case_worked_by_hand():
    scores = scored([[3, 1], [2, 4]])
    assert scores.pixel_acc == pytest.approx(7 / 10)
    assert scores.mean_acc == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores.class_iu == pytest.approx((3 / 6, 4 / 7))
    assert scores.mean_iu == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert scores.fw_iu == pytest.approx(0.4 * 3 / 6 + 0.6 * 4 / 7)


def test_an_absent_class_counts_0_if_predicted_and_not_at_all_if_not():
    """The vector on which peers give .6389, nan, .5694 and .3194; the reference's score.py gives .4259."""
    scores = scored([[7, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert scores.mean_iu == pytest.approx(0.4259, abs=5e-5)
    assert scores.class_iu[2] == 0
    assert math.isnan(scores.class_iu[3])


@given(
    hnp.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 3, IGNORE_LABEL])),
    hnp.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3)),
)
def test_scores_equal_scikit_learns_wherever_a_class_occurs(label, prediction):
    valid = label != IGNORE_LABEL
    truth, guess = label[valid], prediction[valid]
    scores = ConfusionMatrix(4).update(torch.from_numpy(prediction), torch.from_numpy(label)).scores()
    if truth.size == 0:
        assert math.isnan(scores.pixel_acc)
        assert math.isnan(scores.mean_iu)
        return
    occurring = np.union1d(truth, guess)
    iu = jaccard_score(truth, guess, labels=occurring, average=None, zero_division=0)
    assert scores.mean_iu == pytest.approx(iu.mean())
    assert [scores.class_iu[c] for c in occurring] == pytest.approx(list(iu))
    assert scores.pixel_acc == pytest.approx(accuracy_score(truth, guess))
    assert scores.mean_acc == pytest.approx(
        recall_score(truth, guess, labels=np.unique(truth), average="macro")
    )
    assert scores.fw_iu == pytest.approx(jaccard_score(truth, guess, average="weighted", zero_division=0))


def test_counting_in_parts_and_merging_equals_counting_at_once():
    prediction, label = torch.randint(0, 3, (2, 6, 50))
    whole = ConfusionMatrix(3).update(prediction, label)
    first = ConfusionMatrix(3).update(prediction[:2], label[:2])
    second = ConfusionMatrix(3).update(prediction[2:4], label[2:4]).update(prediction[4:], label[4:])
    assert torch.equal(first.merge(second.hist).hist, whole.hist)
    assert whole.hist.dtype == torch.int64


def test_counts_of_a_class_are_diagonal_rows_and_columns_and_void_is_none_of_them():
    label = torch.tensor([0, 0, 1, 1, 2, IGNORE_LABEL])
    prediction = torch.tensor([0, 1, 1, 1, 0, 2])
    matrix = ConfusionMatrix(3).update(prediction, label)
    assert matrix.per_class().tolist() == [[1, 2, 0], [2, 2, 1], [2, 3, 0]]
    other = ConfusionMatrix(3).update(torch.tensor([2]), torch.tensor([2]))
    assert matrix.add(other).per_class().tolist() == [[1, 2, 1], [2, 2, 2], [2, 3, 1]]
    assert matrix.hist.sum() == 6


def test_what_is_no_class_is_found_in_a_matrix_that_another_was_added_to():
    strange = ConfusionMatrix(3).update(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(ValueError, match="1 pixels have"):
        _ = ConfusionMatrix(3).add(strange).hist


def test_rows_are_truth_and_columns_prediction():
    hist = ConfusionMatrix(2).update(torch.tensor([1]), torch.tensor([0])).hist
    assert hist.tolist() == [[0, 1], [0, 0]]


def test_a_prediction_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"prediction is \(2, 3\) but label is \(3, 2\)"):
        ConfusionMatrix(2).update(torch.zeros(2, 3), torch.zeros(3, 2))


@given(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]), st.data())
def test_values_of_any_integer_type_are_counted_as_they_are(dtype, data):
    limits = torch.iinfo(dtype)
    values = st.lists(
        st.one_of(
            st.integers(0, 2),
            st.sampled_from([limits.min, limits.max, 255]).filter(lambda v: v <= limits.max),
        ),
        min_size=5,
        max_size=5,
    )
    label, prediction = data.draw(values), data.draw(values)
    confusion = ConfusionMatrix(3).update(
        torch.tensor(prediction, dtype=dtype), torch.tensor(label, dtype=dtype)
    )
    pairs = [(truth, guess) for truth, guess in zip(label, prediction, strict=True) if truth != IGNORE_LABEL]
    if all(truth in range(3) and guess in range(3) for truth, guess in pairs):
        assert confusion.hist.tolist() == [[pairs.count((t, p)) for p in range(3)] for t in range(3)]
    else:
        foreign = sum(truth not in range(3) or guess not in range(3) for truth, guess in pairs)
        with pytest.raises(ValueError, match=f"^{foreign} pixels"):
            confusion.scores()


def test_a_wide_integer_is_not_taken_for_its_lower_bits():
    with pytest.raises(ValueError, match="1 pixels have a label"):
        ConfusionMatrix(3).update(torch.tensor([0]), torch.tensor([2**32])).scores()


@pytest.mark.parametrize(("prediction", "label"), [(0, 2), (3, 1), (0, -1), (-1, 0), (255, 0), (7, 254)])
def test_a_value_beyond_the_classes_is_refused_when_scores_are_asked_for(prediction, label):
    confusion = ConfusionMatrix(2).update(torch.tensor([prediction, 0]), torch.tensor([label, 0]))
    with pytest.raises(
        ValueError, match=r"1 pixels have a label that is neither 0..1 nor 255, or a prediction"
    ):
        confusion.scores()


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
def test_each_peers_convention_gives_its_published_value(convention, expected):
    """hist = [[7,0,1,0],[1,1,0,0],[0,0,0,0],[0,0,0,0]], measured on the peers themselves."""
    hist = torch.tensor([[7, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = ConfusionMatrix(4).merge(hist).scores(convention).mean_iu
    assert found == pytest.approx(expected, abs=5e-5, nan_ok=True)


def test_an_unknown_convention_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown convention 'voc'; known: reference, ground_truth"):
        ConfusionMatrix(2).scores("voc")


@given(
    hnp.arrays(np.uint8, (2, 7, 9), elements=st.sampled_from([0, 0, 0, 1, IGNORE_LABEL])),
    st.integers(1, 3),
)
def test_the_trimap_is_the_band_where_a_window_sees_two_values(label, radius):
    """Recomputed with scipy's greyscale morphology."""
    window = 2 * radius + 1
    for image, found in zip(label, trimap(torch.from_numpy(label), radius), strict=True):
        high = maximum_filter(image, window, mode="nearest")
        low = minimum_filter(image, window, mode="nearest")
        assert np.array_equal(found.numpy(), np.where(high != low, image, IGNORE_LABEL))


def test_a_trimap_of_no_width_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel"):
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


@pytest.mark.parametrize("num_classes", [1, 2, 256, 257, 400])
def test_the_best_of_many_classes_is_found(num_classes):
    score = torch.randn(2, num_classes, 7, 5, generator=torch.Generator().manual_seed(0))
    before = score.clone()
    found = best_class(score)
    assert found.dtype == torch.int64
    assert torch.equal(found, score.argmax(1))
    assert torch.equal(score, before)
