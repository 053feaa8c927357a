"""Layers that make a backbone faster compute the same as without them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.backbones.speed import MemoryLayout, OneProduct
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
