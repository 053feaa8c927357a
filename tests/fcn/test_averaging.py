"""Averages over scales and mirror images, worked out pass by pass."""

import pytest
import torch
import torch.nn.functional as F

from fcn.averaging import Averaging, average_probability
from fcn.model import FCN

OPTIONS = {"backbone": "mobilenet_v1", "width": 0.1, "score_init": "random"}


@pytest.fixture(scope="module")
def model() -> FCN:
    torch.manual_seed(0)
    return FCN(4, 8, **OPTIONS).eval()


def noise(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def averaged(score, image: torch.Tensor, *scales: float, flip: bool) -> torch.Tensor:
    return average_probability(score, image, Averaging(scales, flip))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.5, 1.0, 1.7)])
def test_the_average_is_that_of_each_pass_by_itself(model, scales, flip):
    image = noise(45, 70)
    passes = []
    for scale in scales:
        height, width = round(45 * scale), round(70 * scale)
        resized = F.interpolate(image.float(), (height, width), mode="bilinear", align_corners=False)
        with torch.inference_mode():
            score = [model(resized)]
            if flip:
                score.append(torch.flip(model(torch.flip(resized, [3])), [3]))
        for one in score:
            odds = one.exp()
            probability = odds / odds.sum(1, keepdim=True)
            passes.append(F.interpolate(probability, (45, 70), mode="bilinear", align_corners=False))
    expected = torch.stack(passes).mean(0)
    found = averaged(model, image, *scales, flip=flip)
    assert found.shape == (2, 4, 45, 70)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_of_the_own_size_alone_it_is_the_softmax_to_the_last_bit(model):
    image = noise(33, 47)
    with torch.inference_mode():
        assert torch.equal(averaged(model, image, 1.0, flip=False), model(image).softmax(1))


def test_a_net_that_knows_no_left_and_right_gives_the_same_with_mirror_images():
    def score(image: torch.Tensor) -> torch.Tensor:
        grey = image.float().mean(1, keepdim=True) / 255
        return torch.cat((grey, 1 - grey, grey**2), 1)

    image = noise(20, 31)
    torch.testing.assert_close(
        averaged(score, image, 0.75, 1.0, flip=True), averaged(score, image, 0.75, 1.0, flip=False)
    )


def test_of_a_mirror_symmetric_image_a_nets_average_is_mirror_symmetric(model):
    half = noise(40, 30)
    image = torch.cat((half, half.flip(-1)), -1)
    found = averaged(model, image, 0.6, 1.0, flip=True)
    torch.testing.assert_close(found, found.flip(-1))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (7, 5)])
def test_probabilities_add_up_to_1_at_any_size(model, size):
    found = averaged(model, noise(*size), 0.1, 0.5, 2.0, flip=True)
    assert found.shape == (2, 4, *size)
    torch.testing.assert_close(found.sum(1), torch.ones(2, *size))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(ValueError, match="scales must be numbers above 0, at least one"):
        Averaging(scales)


def test_one_pass_at_the_own_size_is_no_averaging():
    assert Averaging().is_none
    assert not Averaging(flip=True).is_none
    assert not Averaging((0.5,)).is_none
