"""Layers that make a backbone faster compute the same as without them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn import FCN
from fcn.backbones.speed import MemoryLayout, OneProduct, Row, run_row
from fcn.backbones.vgg import VGG16


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    kernel=st.sampled_from([1, 3, 5]),
    padding=st.integers(0, 3),
)
def test_one_matrix_product_is_the_convolution_and_so_are_its_gradients(
    batch, height, width, kernel, padding
):
    layer = OneProduct(4, 6, kernel, padding=padding).double()
    image = torch.randn(batch, 4, height, width, dtype=torch.float64, requires_grad=True)
    score, expected = layer(image), F.conv2d(image, layer.weight, layer.bias, padding=padding)
    torch.testing.assert_close(score, expected)
    weight = torch.randn_like(expected)
    inputs = (image, layer.weight, layer.bias)
    gradients = torch.autograd.grad((score * weight).sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weight).sum(), inputs))


@pytest.mark.parametrize("padding", ["reference", "tight"])
def test_the_layout_in_memory_changes_no_feature(padding):
    net = VGG16(padding, width=1 / 16, dropout=0.0).double().eval()
    image = torch.rand(1, 3, 60, 75, dtype=torch.float64) * 255
    with_layouts = net(image)
    for name, layer in net.named_children():
        if isinstance(layer, MemoryLayout):
            setattr(net, name, torch.nn.Identity())
    torch.testing.assert_close(with_layouts, net(image))
    assert with_layouts.pool3.is_contiguous()


def one_by_one(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def with_statistics(norm):
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_batch_norm_with_fixed_statistics_becomes_part_of_the_convolution_and_so_do_its_gradients(
    has_bias, groups
):
    row = Row(
        torch.nn.Conv2d(4, 4, 1),  # followed by another convolution
        torch.nn.Conv2d(4, 8, 3, 2, padding=1, groups=groups, bias=has_bias),
        with_statistics(torch.nn.BatchNorm2d(8)),
        torch.nn.ReLU(),
        with_statistics(torch.nn.BatchNorm2d(8)),  # follows no convolution
        torch.nn.Conv2d(8, 2, 1),
    )
    row.double().eval()
    image = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    score, expected = row(image), one_by_one(row, image)
    torch.testing.assert_close(score, expected)
    inputs = (image, *row.parameters())
    gradients = torch.autograd.grad(score.square().sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), inputs))


def test_batch_norm_that_trains_normalises_by_the_batch():
    row = [torch.nn.Conv2d(3, 5, 3, bias=False), with_statistics(torch.nn.BatchNorm2d(5))]
    image = torch.randn(4, 3, 8, 8)
    normalised = run_row(row, image)
    torch.testing.assert_close(normalised.transpose(0, 1).flatten(1).mean(1), row[1].bias)
    assert row[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("efficientnet_lite0", {"width": 0.25}),
        ("googlenet", {"width": 0.125}),
        ("mobilenet_v1", {"width": 0.125}),
        ("resnet50", {"width": 0.125}),
        ("vgg16", {"width": 1 / 16, "batch_norm": True}),
    ],
)
def test_a_net_scores_the_same_whether_or_not_batch_norm_is_part_of_its_convolutions(
    backbone, options, monkeypatch
):
    net = FCN(5, 8, backbone, score_init="random", **options).double().eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            with_statistics(layer)
            layer.weight.data.abs_()
    image = torch.rand(1, 3, 70, 65, dtype=torch.float64) * 255
    score = net(image)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(score, net(image))
