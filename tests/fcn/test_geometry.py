from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcn.backbones.googlenet import Inception
from fcn.backbones.resnet import Bottleneck
from fcn.geometry import IMAGE, CoordMap, crop_offset, receptive_field, upsampling_kernel
from fcn.model import FCN

THIN = {"width": 1 / 64}


@pytest.mark.parametrize(
    ("stride", "backbone", "padding", "offsets", "kernel"),
    [
        # The reference release's crop layers (net.py of voc-fcn32s, 16s, 8s and voc-fcn-alexnet)
        (32, "vgg16", "reference", {"score": 19}, 64),
        (16, "vgg16", "reference", {"pool4": 5, "score": 27}, 32),
        (8, "vgg16", "reference", {"pool4": 5, "pool3": 9, "score": 31}, 16),
        (32, "caffenet", "reference", {"score": 18}, 63),
        (32, "alexnet", "reference", {"score": 18}, 63),
        # With conv1_1 padded by 4 = 100 - 3 * 32 and fc6 by 3, skips move by 6 cells of stride 16, 12 of stride 8
        (32, "vgg16", "tight", {"score": 19}, 64),
        (16, "vgg16", "tight", {"pool4": -1, "score": 27}, 32),
        (8, "vgg16", "tight", {"pool4": -1, "pool3": -3, "score": 31}, 16),
        (32, "caffenet", "tight", {"score": 18}, 63),
        (32, "alexnet", "tight", {"score": 18}, 63),
    ],
)
def test_the_layers_yield_the_crops_and_kernels_of_the_reference_release(
    stride, backbone, padding, offsets, kernel
):
    model = FCN(2, stride, backbone, padding, **THIN)
    assert {name: getattr(model, f"offset_{name}") for name in offsets} == offsets
    assert model.get_submodule(model.last).kernel_size == (kernel, kernel)


# Kernel and stride of every window of each net, from net.py of the reference release and the two papers' tables
VGG16 = [*([(3, 1)] * 2 + [(2, 2)]) * 2, *([(3, 1)] * 3 + [(2, 2)]) * 3, (7, 1)]
ALEXNET = [(11, 4), (3, 2), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 2), (6, 1)]
GOOGLENET = [(7, 2), (3, 2), (3, 1), (3, 2), *[(5, 1)] * 2, (3, 2), *[(5, 1)] * 5, (3, 2), *[(5, 1)] * 2]


def field_backwards(windows: list[tuple[int, int]]) -> int:
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
def test_the_receptive_field_of_fc7_is_that_of_the_paper(backbone, windows, options, field):
    trunk = FCN(2, 32, backbone, **THIN, **options).backbone
    assert receptive_field(trunk.children()) == trunk.geometry.fc7.field == field_backwards(windows) == field


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_dilated_window_is_as_wide_as_the_cells_it_spans(dilation):
    here = IMAGE.through([nn.Conv2d(1, 1, 3, padding=dilation, dilation=dilation)])
    assert (here, here.field) == (IMAGE, 2 * dilation + 1)


@pytest.mark.parametrize(("kernel", "stride", "cells"), [(64, 32, 2), (63, 32, 2), (4, 2, 2), (2, 2, 1)])
def test_an_upsampled_cell_sees_what_the_cells_below_its_kernel_see(kernel, stride, cells):
    coarse = IMAGE.conv(7, stride)
    up = coarse.through([nn.ConvTranspose2d(1, 1, kernel, stride)])
    assert up.field == coarse.field + (cells - 1) * stride


def pixels_of_cell(net: nn.Module, image: torch.Tensor, cell: int) -> tuple[int, int]:
    """Another route: the first and the last column of the image on which the output's cell (cell, cell) depends."""
    image.requires_grad_()
    net(image)[0, :, cell, cell].sum().backward()
    touched = image.grad[0].abs().sum((0, 1)).nonzero().flatten()
    return int(touched[0]), int(touched[-1])


@pytest.mark.parametrize(
    ("block", "stride"),
    [(Inception(8, [1, 2, 3, 4, 5, 6], True), 1), (Bottleneck(8, 2, 2), 2), (Bottleneck(8, 2, 1), 1)],
)
def test_branches_meet_on_the_same_cells_and_the_widest_gives_the_field(block, stride):
    for weight in block.parameters():
        weight.data.abs_()  # no value is negative then, so no ReLU cuts a pixel off
    cell = 10 // stride
    first, last = pixels_of_cell(block.eval(), torch.rand(1, 8, 21, 21), cell)
    here = IMAGE.through([block])
    assert (here.scale, here.field) == (stride, last - first + 1)
    assert here.scale * cell + here.shift == Fraction(first + last, 2)


windows = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3)).filter(lambda w: w[2] < w[0])


@given(st.lists(windows, min_size=1, max_size=3))
def test_a_cell_is_centred_where_its_gradient_is(layers):
    net = nn.Sequential(*(nn.Conv2d(1, 1, k, s, p, bias=False) for k, s, p in layers)).double()
    for layer in net:
        nn.init.ones_(layer.weight)
    image = torch.zeros(1, 1, 101, 101, dtype=torch.float64)
    cell = net(image).shape[-1] // 2
    here = IMAGE.through([*net, nn.ReLU(), nn.BatchNorm2d(1), nn.Dropout()])  # the last three have no window
    assert here.scale * cell + here.shift == Fraction(sum(pixels_of_cell(net, image, cell)), 2)


@given(windows)
def test_a_transposed_convolution_undoes_the_convolutions_map(window):
    kernel, stride, padding = window
    assert IMAGE.conv(kernel, stride, padding).deconv(kernel, stride, padding) == IMAGE


@given(st.lists(st.sampled_from([(3, 2, 1), (2, 2, 0), (3, 2, 0), (3, 1, 1)]), max_size=5))
def test_exactly_one_of_the_two_bilinear_kernels_meets_the_pixels(windows):
    coarse = IMAGE
    for window in windows:
        coarse = coarse.conv(*window)
    stride = int(coarse.scale)
    kernel = upsampling_kernel(coarse, IMAGE)
    assert kernel in (2 * stride, 2 * stride - 1)
    crop_offset(coarse.deconv(kernel, stride), IMAGE)  # does not raise
    with pytest.raises(ValueError, match="cells apart"):
        crop_offset(coarse.deconv(4 * stride - 1 - kernel, stride), IMAGE)


class Crooked(nn.Module):
    def branches(self):
        return [[nn.Conv2d(1, 1, 3)], [nn.Conv2d(1, 1, 3, padding=1)]]


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(1, 1, 3)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: IMAGE.through([Crooked()]), "Crooked"),
        (lambda: IMAGE.through([Opaque()]), "Opaque"),
        (lambda: IMAGE.through([nn.Conv2d(1, 1, (3, 5))]), r"Conv2d.kernel_size = \(3, 5\)"),
        (lambda: crop_offset(IMAGE.conv(2, 2), IMAGE), "stride 2 and 1"),
        (lambda: crop_offset(IMAGE, CoordMap(Fraction(1), Fraction(1, 2))), "1/2 cells apart"),
        (lambda: upsampling_kernel(CoordMap(Fraction(2), Fraction(1, 3)), IMAGE), "shifted by 1/3 pixels"),
        (lambda: upsampling_kernel(IMAGE.conv(3, 3), IMAGE.conv(2, 2)), "stride 3 .* stride 2"),
    ],
)
def test_layers_and_maps_that_do_not_fit_are_refused_by_name_and_value(action, words):
    with pytest.raises(ValueError, match=words):
        action()
