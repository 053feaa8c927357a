"""Averages over scales and mirror images, computed pass by pass."""

import pytest
import torch
import torch.nn.functional as F

from fcn.averaging import Averaging, average_probability
from fcn.model import FCN


@pytest.fixture(scope="module")
def model() -> FCN:
    torch.manual_seed(0)
    return FCN(4, 8, "mobilenet_v1", width=0.1, score_init="random").eval()


def noise(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.5, 1.0, 1.7)])
def test_the_average_is_that_of_each_pass_by_itself(model, scales, flip):
    image = noise(45, 70)
    passes = []
    for scale in scales:
        size = (round(45 * scale), round(70 * scale))
        resized = F.interpolate(image.float(), size, mode="bilinear", align_corners=False)
        scores = [model(resized)]
        if flip:
            scores.append(torch.flip(model(torch.flip(resized, [3])), [3]))
        for score in scores:
            probability = score.exp() / score.exp().sum(1, keepdim=True)
            passes.append(F.interpolate(probability, (45, 70), mode="bilinear", align_corners=False))
    average = average_probability(model, image, Averaging(scales, flip))
    torch.testing.assert_close(average, torch.stack(passes).mean(0), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_at_its_own_size_alone_it_is_the_softmax_to_the_last_bit(model):
    image = noise(33, 47)
    assert torch.equal(average_probability(model, image, Averaging()), model(image).softmax(1))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (7, 5)])
def test_probabilities_add_up_to_1_at_any_size(model, size):
    average = average_probability(model, noise(*size), Averaging((0.1, 0.5, 2.0), flip=True))
    assert average.shape == (2, 4, *size)
    torch.testing.assert_close(average.sum(1), torch.ones(2, *size))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_not_above_0_are_refused(scales):
    with pytest.raises(ValueError, match="scales"):
        Averaging(scales)


def test_only_one_pass_at_its_own_size_is_no_averaging():
    assert Averaging().is_none
    assert not Averaging(flip=True).is_none
    assert not Averaging((0.5,)).is_none
