"""Each loss against its published formula, worked out in numpy."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from fcn import IGNORE_LABEL
from fcn.loss import (
    count_valid,
    cross_entropy,
    dice,
    focal,
    inverse_weights,
    mean_over_images,
    mean_over_pixels,
    mean_pixel_cross_entropy,
    pixel_cross_entropy,
    sampled,
    sum_over_pixels,
    weighted_sum,
)
from fcn.model import FCN

TERMS: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "smoothed": partial(cross_entropy, smoothing=0.2),
    **{f"focal {gamma}": partial(focal, gamma=gamma) for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)},
    "dice": dice,
}
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)


def by_hand(score: torch.Tensor, label: torch.Tensor) -> float:
    """-log softmax of the true class, added up pixel by pixel."""
    total = 0.0
    for n in range(label.shape[0]):
        for y in range(label.shape[1]):
            for x in range(label.shape[2]):
                if (truth := int(label[n, y, x])) != IGNORE_LABEL:
                    logits = score[n, :, y, x].tolist()
                    total += math.log(sum(math.exp(z) for z in logits)) - logits[truth]
    return total


def in_numpy(name: str, score: torch.Tensor, label: torch.Tensor) -> np.ndarray:
    """(N, H, W) of a term of TERMS, from its formula."""
    log_p, loss = log_softmax(score.numpy(), axis=1), np.zeros(label.shape)
    num_classes = score.shape[1]
    for n, y, x in zip(*np.nonzero(label.numpy() != IGNORE_LABEL), strict=True):
        truth = int(label[n, y, x])
        p = math.exp(log_p[n, truth, y, x])
        if name == "smoothed":
            target = np.full(num_classes, 0.2 / num_classes)
            target[truth] += 0.8
            loss[n, y, x] = -(target * log_p[n, :, y, x]).sum()
        elif name == "dice":
            loss[n, y, x] = dice_of_image(np.exp(log_p[n]), label[n].numpy())
        else:
            gamma = float(name.partition(" ")[2] or 0)
            loss[n, y, x] = -((1 - p) ** gamma) * math.log(p)
    return loss


def dice_of_image(p: np.ndarray, label: np.ndarray) -> float:
    """Milletari's coefficient without its squares, one class of the label after the other."""
    valid = label != IGNORE_LABEL
    losses = []
    for c in set(label[valid].tolist()):
        t = (label == c)[valid].astype(float)
        losses.append(1 - 2 * (p[c][valid] * t).sum() / (p[c][valid].sum() + t.sum()))
    return float(np.mean(losses))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels of two images, with 5 and 15 valid pixels; the first lacks a class or more."""
    torch.manual_seed(0)
    label = torch.randint(0, 4, (2, 3, 5))
    label[0, :2] = IGNORE_LABEL
    label[0, 2] = torch.tensor([0, 0, 2, 0, 2])
    return torch.randn(2, 4, 3, 5, dtype=torch.float64), label


# Terms


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_its_formula_at_every_pixel(batch, name):
    loss = TERMS[name](*batch)
    np.testing.assert_allclose(loss.numpy(), in_numpy(name, *batch), rtol=1e-10)


@pytest.mark.parametrize("name", TERMS)
def test_each_terms_gradient_is_that_of_its_differences(batch, name):
    score, label = batch
    assert torch.autograd.gradcheck(lambda leaf: TERMS[name](leaf, label), score.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_pixels_that_are_certain_or_hopeless_have_a_finite_gradient(name):
    """In float32, where the probability of a class is 1, or 0."""
    score = torch.zeros(1, 3, 1, 3)
    score[0, 0, 0, :2] = torch.tensor([200.0, -200.0])
    loss = TERMS[name](score.requires_grad_(), torch.zeros(1, 1, 3, dtype=torch.int64))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert score.grad is not None
    assert score.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_void_counts_in_no_term_whatever_its_scores_are(batch, name):
    score, label = batch
    expected = TERMS[name](score, label)
    assert not expected[label == IGNORE_LABEL].any()
    score[0, :, :2] = torch.tensor([9.0, -9.0, 0.0, 3.0])[:, None, None]
    torch.testing.assert_close(TERMS[name](score, label), expected)


@pytest.mark.parametrize("name", TERMS)
def test_an_all_void_image_costs_nothing_and_has_no_gradient(name):
    score = torch.randn(2, 4, 3, 5, requires_grad=True)
    label = torch.full((2, 3, 5), IGNORE_LABEL)
    for normalised in (sum_over_pixels, lambda loss: mean_over_images(loss, label)):
        value = normalised(TERMS[name](score, label))
        assert value.item() == 0
        value.backward()
        assert score.grad is not None
        assert not score.grad.any()


def test_dice_of_a_certain_net_is_one_less_sklearns_f1_of_the_classes_in_the_label():
    random = np.random.default_rng(0)
    label, guess = random.integers(0, 3, (2, 8, 9))  # of four classes; the last is not in the label
    guess[0, 0] = 3
    score = torch.full((1, 4, 8, 9), -1e4).scatter(1, torch.from_numpy(guess)[None, None], 1e4)
    loss = dice(score, torch.from_numpy(label)[None])
    f1 = f1_score(label.ravel(), guess.ravel(), labels=[0, 1, 2], average="macro")
    assert loss.unique().tolist() == pytest.approx([1 - f1])


@pytest.mark.parametrize("name", ["cross_entropy", "smoothed", "focal 2.0"])
def test_class_weights_scale_each_pixels_loss_by_that_of_its_class(batch, name):
    score, label = batch
    plain = TERMS[name](score, label)
    factor = torch.where(label == IGNORE_LABEL, 0.0, WEIGHT[label.clamp(max=3)])
    torch.testing.assert_close(TERMS[name](score, label, WEIGHT), factor * plain)


def test_the_weighted_sum_adds_the_terms_with_their_weights(batch):
    weights = {"cross_entropy": 1.5, "focal": 0.5, "dice": 2.0}
    loss = weighted_sum(*batch, weights, WEIGHT, smoothing=0.2, gamma=5.0)
    smoothed, focused = (in_numpy(name, *batch) for name in ("smoothed", "focal 5.0"))
    factor = WEIGHT[batch[1].clamp(max=3)].numpy()
    expected = factor * (1.5 * smoothed + 0.5 * focused) + 2 * in_numpy("dice", *batch)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-10)
    alone = weighted_sum(*batch, weights | {"cross_entropy": 0.0, "focal": 0.0}, WEIGHT)
    np.testing.assert_allclose(alone.numpy(), 2 * in_numpy("dice", *batch), rtol=1e-10)


# Normalisations


def test_each_normalisation_divides_the_sum_over_pixels_in_its_own_way(batch):
    score, label = batch
    first, second = (by_hand(score[n : n + 1], label[n : n + 1]) for n in (0, 1))
    loss = cross_entropy(score, label)
    assert count_valid(label).item() == 20
    assert sum_over_pixels(loss).item() == pytest.approx((first + second) / 2)
    assert pixel_cross_entropy(score, label).item() == pytest.approx((first + second) / 2)
    assert mean_over_pixels(loss, torch.tensor(50.0)).item() == pytest.approx((first + second) / 50)
    assert mean_pixel_cross_entropy(score, label).item() == pytest.approx((first + second) / 20)
    assert mean_over_images(loss, label).item() == pytest.approx((first / 5 + second / 15) / 2)
    label[0] = IGNORE_LABEL
    loss = mean_over_images(cross_entropy(score, label), label)
    assert loss.item() == pytest.approx(second / 15 / 2)


def test_the_mean_over_no_pixel_is_0():
    score, label = torch.randn(1, 4, 3, 5), torch.full((1, 3, 5), IGNORE_LABEL)
    assert mean_pixel_cross_entropy(score, label).item() == 0


def test_the_first_loss_of_a_21_class_net_is_ln_21_a_pixel():
    score = FCN(21, 32, width=1 / 64)(torch.zeros(1, 3, 20, 30))
    label = torch.randint(0, 21, (1, 20, 30))
    assert mean_pixel_cross_entropy(score, label).item() == pytest.approx(3.0445, abs=1e-4)
    assert pixel_cross_entropy(score, label).item() == pytest.approx(600 * math.log(21), rel=1e-5)


def test_the_gradient_of_two_workers_averaged_is_that_of_the_whole_batch(batch):
    """Caffe's semantics of the summed loss, and what DistributedDataParallel does with gradients."""
    score, label = batch
    whole = torch.autograd.grad(pixel_cross_entropy(score.requires_grad_(), label), score)[0]
    halves = [
        torch.autograd.grad(pixel_cross_entropy(score[i : i + 1], label[i : i + 1]), score)[0] for i in (0, 1)
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


# Pixels and classes that count


def test_inverse_weights_weigh_all_classes_that_occur_the_same():
    pixels = torch.tensor([700, 200, 0, 100])
    weights = inverse_weights(pixels)
    torch.testing.assert_close(weights * pixels, torch.tensor([1000 / 3, 1000 / 3, 0, 1000 / 3]))


def test_sampling_keeps_about_that_share_of_the_pixels_and_changes_no_label():
    torch.manual_seed(0)
    label = torch.randint(0, 4, (1, 300, 300))
    kept = sampled(label, 0.25)
    assert count_valid(kept).item() == pytest.approx(0.25 * 90_000, rel=0.02)
    assert torch.equal(kept[kept != IGNORE_LABEL], label[kept != IGNORE_LABEL])
    assert torch.equal(sampled(label, 1.0), label)


@pytest.mark.parametrize("keep", [0, -0.5, 1.5])
def test_a_share_outside_0_to_1_is_refused(keep):
    with pytest.raises(ValueError, match=str(keep)):
        sampled(torch.zeros(1, 2, 2), keep)
