from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcn.geometry import IMAGE, CoordMap, crop_offset
from fcn.model import FCN

# The reference release's crop layers: pool4, pool3, score (net.py of voc-fcn32s, 16s and 8s)
REFERENCE_OFFSETS = {32: (None, None, 19), 16: (5, None, 27), 8: (5, 9, 31)}
# With conv1_1 padded by 4 = 100 - 3 * 32 and fc6 by 3, skips move by 6 cells of stride 16, 12 of stride 8
TIGHT_OFFSETS = {32: (None, None, 19), 16: (-1, None, 27), 8: (-1, -3, 31)}


def offsets(model: FCN) -> tuple[int | None, int | None, int]:
    return getattr(model, "offset_pool4", None), getattr(model, "offset_pool3", None), model.offset_score


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize(
    ("padding", "expected"), [("reference", REFERENCE_OFFSETS), ("tight", TIGHT_OFFSETS)]
)
def test_the_layers_yield_the_crop_offsets_of_the_reference_release(stride, padding, expected):
    assert offsets(FCN(2, stride, padding=padding, width=1 / 64)) == expected[stride]


def test_the_offset_18_of_fcn_alexnet_comes_out_of_its_layers():
    here = IMAGE.conv(11, 4, 100).conv(3, 2).conv(5, 1, 2).conv(3, 2)  # conv1 pool1 conv2 pool2
    here = here.conv(3, 1, 1).conv(3, 1, 1).conv(3, 1, 1).conv(3, 2).conv(6)  # conv3 conv4 conv5 pool5 fc6
    assert crop_offset(here.deconv(63, 32), IMAGE) == 18


windows = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(0, 3)).filter(lambda w: w[2] < w[0])


@given(st.lists(windows, min_size=1, max_size=4))
def test_a_cell_is_centred_where_its_gradient_says(layers):
    """Another route: the pixels one output cell depends on are symmetric about its centre."""
    net = nn.Sequential(*(nn.Conv1d(1, 1, k, s, p, bias=False) for k, s, p in layers))
    for layer in net:
        nn.init.ones_(layer.weight)
    image = torch.zeros(1, 1, 601, dtype=torch.float64, requires_grad=True)
    score = net.double()(image)
    cell = score.shape[-1] // 2
    score[0, 0, cell].backward()
    touched = image.grad[0, 0].nonzero().flatten()
    here = IMAGE
    for kernel, stride, padding in layers:
        here = here.conv(kernel, stride, padding)
    assert here.scale * cell + here.shift == Fraction(int(touched[0] + touched[-1]), 2)


@given(windows)
def test_a_transposed_convolution_undoes_the_convolutions_map(window):
    kernel, stride, padding = window
    assert IMAGE.conv(kernel, stride, padding).deconv(kernel, stride, padding) == IMAGE


def test_layers_without_a_window_do_not_move_anything():
    layers = [nn.ReLU(), nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 3, 1)]
    assert IMAGE.through(layers) == IMAGE


def test_maps_of_different_stride_cannot_be_aligned():
    with pytest.raises(ValueError, match="stride 2 and 1"):
        crop_offset(IMAGE.conv(2, 2), IMAGE)


def test_maps_half_a_cell_apart_cannot_be_aligned():
    with pytest.raises(ValueError, match="1/2 cells apart"):
        crop_offset(IMAGE, CoordMap(Fraction(1), Fraction(1, 2)))


def test_a_window_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square"):
        IMAGE.through([nn.Conv2d(1, 1, (3, 5))])
