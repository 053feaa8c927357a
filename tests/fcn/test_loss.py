import math

import pytest
import torch

from fcn import IGNORE_LABEL
from fcn.loss import (
    balancing_weights,
    count_valid,
    image_mean_cross_entropy,
    mean_pixel_cross_entropy,
    pixel_cross_entropy,
    sampled,
)
from fcn.model import FCN


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


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels of two images, with 5 and 15 valid pixels."""
    torch.manual_seed(0)
    label = torch.randint(0, 4, (2, 3, 5))
    label[0, :2] = IGNORE_LABEL
    return torch.randn(2, 4, 3, 5), label


def test_each_loss_divides_the_sum_over_pixels_in_its_own_way(batch):
    score, label = batch
    first, second = (by_hand(score[n : n + 1], label[n : n + 1]) for n in (0, 1))
    assert count_valid(label).item() == 20
    assert pixel_cross_entropy(score, label).item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert mean_pixel_cross_entropy(score, label).item() == pytest.approx((first + second) / 20, rel=1e-5)
    loss = mean_pixel_cross_entropy(score, label, torch.tensor(50.0))
    assert loss.item() == pytest.approx((first + second) / 50, rel=1e-5)
    loss = image_mean_cross_entropy(score, label)
    assert loss.item() == pytest.approx((first / 5 + second / 15) / 2, rel=1e-5)
    label[0] = IGNORE_LABEL
    assert image_mean_cross_entropy(score, label).item() == pytest.approx(second / 15 / 2, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [pixel_cross_entropy, mean_pixel_cross_entropy, image_mean_cross_entropy],
    ids=lambda f: f.__name__,
)
def test_an_all_void_image_costs_nothing_and_has_no_gradient(loss):
    score = torch.randn(1, 4, 3, 5, requires_grad=True)
    value = loss(score, torch.full((1, 3, 5), IGNORE_LABEL))
    assert value.item() == 0
    value.backward()
    assert not score.grad.any()


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


def test_class_weights_scale_each_pixels_loss(batch):
    score, label = batch
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0])
    parts = [by_hand(score, torch.where(label == c, c, IGNORE_LABEL)) for c in range(4)]
    expected = sum(w * part for w, part in zip(weight.tolist(), parts, strict=True))
    assert pixel_cross_entropy(score, label, weight).item() == pytest.approx(expected / 2, rel=1e-5)
    loss = mean_pixel_cross_entropy(score, label, class_weight=weight)
    assert loss.item() == pytest.approx(expected / 20, rel=1e-5)


def test_balancing_weighs_all_classes_that_occur_the_same():
    pixels = torch.tensor([700, 200, 0, 100])
    weights = balancing_weights(pixels)
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
