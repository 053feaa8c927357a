"""bench/upper_bound.py: the paper's appendix A, from its own label images."""

import pytest
import torch

from bench.upper_bound import PUBLISHED, coarsened, mean_iu, read


def test_a_border_between_two_cells_survives_and_a_thing_much_smaller_than_a_cell_does_not():
    label = torch.zeros(64, 64, dtype=torch.int64)
    label[:, 32:] = 7
    assert torch.equal(coarsened(label, 8), label)
    label[20:22, 20:22] = 3
    assert not (coarsened(label, 8) == 3).any()


@pytest.mark.slow
def test_the_papers_upper_bounds_come_out_of_its_736_labels(real_data):
    labels = read(real_data / "seg11valid_masks")
    assert len(labels) == 736
    found = {factor: 100 * mean_iu(labels, factor) for factor in PUBLISHED}
    assert found == pytest.approx(PUBLISHED, abs=1.0)
