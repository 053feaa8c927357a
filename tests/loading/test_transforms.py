"""pipeline/loading/transforms.py: what is drawn for an image, and what becomes of it and its label."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as v2

from fcn import IGNORE_LABEL
from pipeline.config.training import Transforms
from pipeline.loading.transforms import Change, apply, draw, largest

NONE = Change(1, 1, 1, 0, (4, 6), (0, 0, 4, 6), False)
ALL = Transforms(
    mirror=True,
    jitter=32,
    scale=(0.5, 2.0),
    crop=(40, 30),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
)
sides = st.integers(1, 60)
positions = st.integers(0, 10**12)
transforms = st.builds(
    Transforms,
    mirror=st.booleans(),
    jitter=st.integers(0, 32),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.7, 0.7)]),
    crop=st.none() | st.tuples(sides, sides),
    brightness=st.sampled_from([0.0, 0.5]),
)


def tagged(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose every pixel tells its row, column and the label's value there, all 1 or more."""
    row, column = torch.meshgrid(torch.arange(1, height + 1), torch.arange(1, width + 1), indexing="ij")
    label = (row * 7 + column * 3) % 20 + 1
    return torch.stack([row, column, label]).to(torch.uint8), label.to(torch.uint8)


def drawn(changes: Transforms, count: int = 2000, size: tuple[int, int] = (100, 80)) -> list[Change]:
    return [draw(changes, size, 7, position) for position in range(count)]


# --- what is drawn


@settings(deadline=None)
@given(transforms, sides, sides, st.integers(0, 2**63 - 1), positions)
def test_a_draw_is_a_function_of_seed_and_position_alone(changes, height, width, seed, position):
    first = draw(changes, (height, width), seed, position)
    torch.rand(1)
    np.random.default_rng().random()
    draw(changes, (height, width), seed, position + 1)
    assert draw(changes, (height, width), seed, position) == first


def test_seeds_and_positions_differ_in_what_they_draw():
    changes = {draw(ALL, (100, 80), seed, position) for seed in range(10) for position in range(100)}
    assert len(changes) == 1000


def test_no_transform_changes_nothing():
    assert set(drawn(Transforms(), 100, (4, 6))) == {NONE}


def test_half_of_the_images_are_mirrored():
    share = np.mean([change.mirrored for change in drawn(Transforms(mirror=True))])
    assert share == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)


def test_jitter_shifts_by_every_number_of_pixels_up_to_its_own_both_ways():
    shifts = [change.window[:2] for change in drawn(Transforms(jitter=3))]
    assert set(shifts) == {(down, right) for down in range(-3, 4) for right in range(-3, 4)}
    assert {change.size for change in drawn(Transforms(jitter=3))} == {(100, 80)}


def test_scale_is_as_often_below_as_above_the_middle_of_its_logarithm():
    factors = np.array([change.scaled[0] / 100 for change in drawn(Transforms(scale=(0.5, 2.0)))])
    assert (factors.min(), factors.max()) == (pytest.approx(0.5, abs=0.01), pytest.approx(2.0, abs=0.02))
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.06)
    for change in drawn(Transforms(scale=(0.5, 2.0)), 100):
        assert change.scaled[1] == pytest.approx(change.scaled[0] * 0.8, abs=1)  # the shape stays


def test_a_crop_is_anywhere_in_the_image_and_anywhere_around_a_smaller_one():
    windows = [change.window for change in drawn(Transforms(crop=(98, 82)))]
    assert {top for top, *_ in windows} == {0, 1, 2}  # of 100 rows it leaves out 2
    assert {left for _, left, *_ in windows} == {-2, -1, 0}  # of its 82 columns 80 are there
    assert {window[2:] for window in windows} == {(98, 82)}


def test_colours_are_drawn_evenly_from_their_range():
    changes = drawn(Transforms(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1))
    for values, middle, reach in (
        ([change.brightness for change in changes], 1, 0.4),
        ([change.contrast for change in changes], 1, 0.3),
        ([change.saturation for change in changes], 1, 0.2),
        ([change.hue for change in changes], 0, 0.1),
    ):
        assert min(values) == pytest.approx(middle - reach, abs=0.01)
        assert max(values) == pytest.approx(middle + reach, abs=0.01)
        assert np.mean(values) == pytest.approx(middle, abs=0.03)


def test_one_transform_more_does_not_change_what_the_others_draw():
    fewer = drawn(Transforms(mirror=True, crop=(50, 50)), 100)
    more = drawn(Transforms(mirror=True, crop=(50, 50), brightness=0.4, hue=0.1), 100)
    assert [(c.window, c.mirrored) for c in fewer] == [(c.window, c.mirrored) for c in more]


@settings(max_examples=300, deadline=None)
@given(transforms, sides, sides, positions)
def test_no_outcome_is_larger_than_the_largest(changes, height, width, position):
    size = draw(changes, (height, width), 1, position).size
    assert all(side <= most for side, most in zip(size, largest(changes, (height, width)), strict=True))


# --- what becomes of the pixels


@settings(max_examples=200, deadline=None)
@given(transforms, sides, sides, positions)
def test_the_size_is_the_one_foretold_and_torchs_random_state_stays(changes, height, width, position):
    image, label = tagged(height, width)
    change, state = draw(changes, (height, width), 1, position), torch.get_rng_state()
    photo, truth = apply(change, image, label)
    assert photo.shape == (3, *change.size)
    assert truth.shape == change.size
    assert (photo.dtype, truth.dtype) == (torch.uint8, torch.uint8)
    assert type(photo) is type(truth) is torch.Tensor
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=200, deadline=None)
@given(transforms, sides, sides, positions)
def test_without_scale_and_colours_every_label_stays_with_its_pixel(changes, height, width, position):
    plain = Transforms(mirror=changes.mirror, jitter=changes.jitter, crop=changes.crop)
    image, label = tagged(height, width)
    photo, truth = apply(draw(plain, (height, width), 1, position), image, label)
    there = truth != IGNORE_LABEL
    assert torch.equal(photo[2][there], truth[there])
    assert not photo[:, ~there].any()  # beyond the border: black and void
    row, column = photo[0][there].long() - 1, photo[1][there].long() - 1
    assert torch.equal(label[row, column], truth[there])
    assert len(set(zip(row.tolist(), column.tolist(), strict=True))) == int(there.sum())  # each pixel once


def test_mirroring_by_hand():
    image, label = tagged(4, 6)
    photo, truth = apply(NONE._replace(mirrored=True), image, label)
    assert torch.equal(photo, image.flip(2))
    assert torch.equal(truth, label.flip(1))


def test_a_shift_by_hand():
    """Down by 1 and right by 2 takes the window up by 1 and left by 2."""
    image, label = tagged(4, 6)
    photo, truth = apply(NONE._replace(window=(-1, -2, 4, 6)), image, label)
    assert torch.equal(photo[:, 1:, 2:], image[:, :3, :4])
    assert torch.equal(truth[1:, 2:], label[:3, :4])
    assert not photo[:, 0].any()
    assert not photo[:, :, :2].any()
    assert (truth[0] == IGNORE_LABEL).all()
    assert (truth[:, :2] == IGNORE_LABEL).all()


def test_an_image_shifted_out_of_its_own_window_leaves_nothing_but_void():
    image, label = tagged(3, 3)
    photo, truth = apply(Change(1, 1, 1, 0, (3, 3), (5, -9, 3, 3), True), image, label)
    assert not photo.any()
    assert (truth == IGNORE_LABEL).all()


@pytest.mark.parametrize("factor", [0.5, 0.73, 1.0, 1.37, 2.0])
def test_a_scaled_label_keeps_to_its_values_and_to_its_image(factor: float):
    """Two flat halves: where label and image change must stay the same column, but for the one that is blended."""
    image, label = torch.zeros(3, 40, 60, dtype=torch.uint8), torch.zeros(40, 60, dtype=torch.uint8)
    image[:, :, 30:], label[:, 30:] = 200, 15
    scaled = round(40 * factor), round(60 * factor)
    photo, truth = apply(Change(1, 1, 1, 0, scaled, (0, 0, *scaled), False), image, label)
    assert set(truth.unique().tolist()) == {0, 15}
    bright = photo[0] > 100
    assert ((truth == 15) != bright).float().mean(0).nonzero().numel() <= 1
    assert bright.float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_void_stays_void_however_scaled():
    """Blended, 255 and 0 would give classes that are not there."""
    image = torch.zeros(3, 30, 30, dtype=torch.uint8)
    label = torch.zeros(30, 30, dtype=torch.uint8)
    label[10:20, 10:20] = IGNORE_LABEL
    _, truth = apply(Change(1, 1, 1, 0, (47, 22), (0, 0, 47, 22), False), image, label)
    assert set(truth.unique().tolist()) == {0, IGNORE_LABEL}


def test_an_image_is_scaled_as_torchvision_does_it():
    image, label = (
        torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8),
        torch.zeros(40, 60, dtype=torch.uint8),
    )
    photo, _ = apply(Change(1, 1, 1, 0, (30, 45), (0, 0, 30, 45), False), image, label)
    assert torch.equal(photo, v2.resize(image, [30, 45], antialias=True))


def test_colours_change_the_image_and_not_what_lies_beyond_its_border_nor_the_label():
    image, label = torch.full((3, 4, 6), 100, dtype=torch.uint8), torch.ones(4, 6, dtype=torch.uint8)
    photo, truth = apply(NONE._replace(brightness=1.5, contrast=0.5, window=(-2, 0, 4, 6)), image, label)
    assert (photo[:, 2:].int() - 150).abs().max() <= 1  # a flat image has no contrast to lose
    assert not photo[:, :2].any()
    assert truth.tolist() == [[IGNORE_LABEL] * 6] * 2 + [[1] * 6] * 2


def test_hue_turns_red_to_green_after_a_third_of_the_circle():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[0] = 240
    photo, _ = apply(
        Change(1, 1, 1, 1 / 3, (2, 2), (0, 0, 2, 2), False), image, torch.zeros(2, 2, dtype=torch.uint8)
    )
    assert (photo.float() - torch.tensor([0, 240, 0]).view(3, 1, 1)).abs().max() <= 2
