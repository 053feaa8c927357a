from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn.backbones.googlenet import Inception
from fcn.backbones.resnet import Bottleneck
from fcn.geometry import IMAGE, CoordMap, crop_offset, receptive_field, upsampling_kernel
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


@pytest.mark.parametrize("backbone", ["caffenet", "alexnet"])
@pytest.mark.parametrize("padding", ["reference", "tight"])
def test_the_kernel_63_and_offset_18_of_fcn_alexnet_come_out_of_its_layers(backbone, padding):
    model = FCN(2, 32, backbone, padding, width=1 / 64)
    assert (model.upscore.kernel_size, model.offset_score) == ((63, 63), 18)


# Kernel and stride of every window of each net, from net.py of the reference release and the two papers' tables
VGG16 = [*([(3, 1)] * 2 + [(2, 2)]) * 2, *([(3, 1)] * 3 + [(2, 2)]) * 3, (7, 1)]
ALEXNET = [(11, 4), (3, 2), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 2), (6, 1)]
GOOGLENET = [(7, 2), (3, 2), (3, 1), (3, 2), *[(5, 1)] * 2, (3, 2), *[(5, 1)] * 5, (3, 2), *[(5, 1)] * 2]


def seen(windows: list[tuple[int, int]]) -> int:
    """Another route: back from one cell to the pixels it needs."""
    size = 1
    for kernel, stride in reversed(windows):
        size = (size - 1) * stride + kernel
    return size


@pytest.mark.parametrize(
    ("backbone", "windows", "options", "field"),
    [
        ("vgg16", VGG16, {}, 404),
        ("caffenet", ALEXNET, {}, 355),
        ("alexnet", ALEXNET, {}, 355),
        ("googlenet", GOOGLENET, {"windows": "paper"}, 715),
    ],
)
def test_fc7_sees_as_many_pixels_as_the_paper_says(backbone, windows, options, field):
    trunk = FCN(2, 32, backbone, width=1 / 64, **options).backbone
    assert receptive_field(trunk.children()) == trunk.geometry.fc7.field == seen(windows) == field


def test_the_papers_907_for_googlenet_are_seen_by_the_average_pooling_that_it_discards():
    trunk = FCN(2, 32, "googlenet", width=1 / 64, windows="paper").backbone
    assert receptive_field([*trunk.children(), nn.AvgPool2d(7, 1)]) == seen([*GOOGLENET, (7, 1)]) == 907


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_dilated_window_is_as_wide_as_the_cells_it_spans(dilation):
    found = IMAGE.through([nn.Conv2d(1, 1, 3, padding=dilation, dilation=dilation)])
    assert (found, found.field) == (IMAGE, 2 * dilation + 1)


@pytest.mark.parametrize(("kernel", "stride", "cells"), [(64, 32, 2), (63, 32, 2), (4, 2, 2), (2, 2, 1)])
def test_an_upsampled_cell_sees_what_the_cells_below_its_kernel_see(kernel, stride, cells):
    coarse = IMAGE.conv(7, stride)
    up = coarse.through([nn.ConvTranspose2d(1, 1, kernel, stride)])
    assert up.field == coarse.field + (cells - 1) * stride


@pytest.mark.parametrize(
    "block", [Inception(8, [1, 2, 3, 4, 5, 6], True), Bottleneck(8, 2, 2), Bottleneck(8, 2, 1)]
)
def test_branches_meet_on_the_same_cells_and_the_widest_is_what_is_seen(block):
    """Another route: the pixels on which the middle output depends."""
    image = torch.rand(1, 8, 21, 21, requires_grad=True)
    for weight in block.parameters():
        weight.data.abs_()  # nothing is negative then, so no ReLU cuts a pixel off
    out = block.eval()(image)
    stride = round(21 / out.shape[-1])
    row = 10 // stride
    out[0, :, row, row].sum().backward()
    touched = image.grad[0].abs().sum((0, 1)).nonzero().flatten().tolist()
    here = IMAGE.through([block])
    assert here.scale == stride
    assert here.field == touched[-1] - touched[0] + 1
    assert here.scale * row + here.shift == Fraction(touched[0] + touched[-1], 2)


class Crooked(nn.Module):
    def branches(self):
        return [[nn.Conv2d(1, 1, 3)], [nn.Conv2d(1, 1, 3, padding=1)]]


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(1, 1, 3)


def test_branches_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match="Crooked end on different positions"):
        IMAGE.through([Crooked()])


def test_a_layer_whose_inside_is_not_known_is_refused():
    with pytest.raises(ValueError, match="Opaque has layers inside"):
        IMAGE.through([Opaque()])


@settings(deadline=None)
@given(
    windows=st.lists(st.sampled_from([(3, 2, 1), (2, 2, 0), (3, 2, 0), (3, 1, 1)]), max_size=5),
)
def test_one_of_the_two_bilinear_kernels_meets_the_pixels(windows):
    coarse = IMAGE
    for window in windows:
        coarse = coarse.conv(*window)
    stride = int(coarse.scale)
    kernel = upsampling_kernel(coarse, IMAGE)
    assert kernel in (2 * stride, 2 * stride - 1)
    crop_offset(coarse.deconv(kernel, stride), IMAGE)  # does not raise
    with pytest.raises(ValueError, match="cells apart"):
        crop_offset(coarse.deconv(4 * stride - 1 - kernel, stride), IMAGE)


def test_a_map_on_thirds_of_a_cell_cannot_be_upsampled_onto_pixels():
    with pytest.raises(ValueError, match="shifted by 1/3 pixels"):
        upsampling_kernel(CoordMap(Fraction(2), Fraction(1, 3)), IMAGE)


def test_a_map_cannot_be_upsampled_to_a_stride_that_does_not_divide_its_own():
    with pytest.raises(ValueError, match="stride 3 cannot be upsampled to stride 2"):
        upsampling_kernel(IMAGE.conv(3, 3), IMAGE.conv(2, 2))


windows = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(0, 3)).filter(lambda w: w[2] < w[0])


@settings(deadline=None)
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


@settings(deadline=None)
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
