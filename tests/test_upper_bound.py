"""bench/upper_bound.py: the paper's appendix A, from its own label images."""

import pytest
import torch

from bench.upper_bound import PUBLISHED, coarsened, mean_iu, read


def test_a_label_of_large_squares_survives_a_small_stride_but_for_its_corners():
    label = torch.zeros(64, 64, dtype=torch.int64)
    label[16:48, 16:48] = 7
    wrong = coarsened(label, 8) != label
    assert wrong.sum() == 4 * 3  # bilinear enlargement rounds each corner of the square by three pixels
    assert not wrong[20:44].any()


def test_the_papers_upper_bounds_come_out_of_its_736_labels_within_one_point(real_data):
    labels = read(real_data / "seg11valid_masks")
    assert len(labels) == 736
    found = {factor: 100 * mean_iu(labels, factor) for factor in PUBLISHED}
    assert found == {factor: pytest.approx(value, abs=1.0) for factor, value in PUBLISHED.items()}
