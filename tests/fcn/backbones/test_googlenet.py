import pytest
import torch
from torch import nn

from fcn.backbones.googlenet import GoogLeNet


def test_with_its_1000_classes_it_has_torchvisions_number_of_parameters():
    """6,624,904 (torchvision's meta data, without the auxiliary classifiers): 1024 x 1000 + 1000 of them classify."""
    with torch.device("meta"):
        net = GoogLeNet()
    assert sum(p.numel() for p in net.parameters()) + 1024 * 1000 + 1000 == 6_624_904


def test_without_batch_norm_the_papers_net_has_the_papers_6_million_parameters():
    """CVPR Table 1: 6M. By hand from Szegedy et al., table 1, with a bias each and without the 1000 classes."""
    with torch.device("meta"):
        net = GoogLeNet(windows="paper")
    convs = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    num_parameters = sum(c.weight.numel() + c.out_channels for c in convs)
    before, by_hand = 192, (7 * 7 * 3 + 1) * 64 + (64 + 1) * 64 + (9 * 64 + 1) * 192
    table = """
        64 96 128 16 32 32, 128 128 192 32 96 64, 192 96 208 16 48 64, 160 112 224 24 64 64, 128 128 256 24 64 64,
        112 144 288 32 64 64, 256 160 320 32 128 128, 256 160 320 32 128 128, 384 192 384 48 128 128"""
    for row in table.split(","):
        one, reduce3, three, reduce5, five, pool = map(int, row.split())
        by_hand += (before + 1) * (one + reduce3 + reduce5 + pool)
        by_hand += (9 * reduce3 + 1) * three + (25 * reduce5 + 1) * five
        before = one + three + five + pool
    assert num_parameters == by_hand
    assert round(num_parameters / 1e6) == 6


@pytest.mark.parametrize("windows", ["torchvision", "paper"])
def test_an_image_of_one_pixel_leaves_a_cell(windows):
    features = GoogLeNet(width=1 / 16, windows=windows).eval()(torch.zeros(1, 3, 1, 1))
    assert [tuple(feature.shape[2:]) for feature in features] == [(4, 4), (2, 2), (1, 1)]


@torch.inference_mode()
def test_a_small_image_is_one_with_mean_pixels_beside_and_below_it():
    net = GoogLeNet(width=1 / 16).eval()
    image = torch.randint(0, 256, (1, 3, 9, 14)).float()
    wide = torch.full((1, 3, 31, 31), 127.5)
    wide[..., :9, :14] = image
    for a, b in zip(net(image), net(wide), strict=True):
        torch.testing.assert_close(a, b)
