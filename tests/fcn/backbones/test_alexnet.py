import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from fcn.backbones.alexnet import AlexNet, CaffeNet, CaffeNetClassifier

# name, kind, outputs, kernel, stride, padding, groups; as voc-fcn-alexnet/net.py of the reference release writes them
REFERENCE = [
    ("conv1", 96, 11, 4, 100, 1),
    ("conv2", 256, 5, 1, 2, 2),
    ("conv3", 384, 3, 1, 1, 1),
    ("conv4", 384, 3, 1, 1, 2),
    ("conv5", 256, 3, 1, 1, 2),
    ("fc6", 4096, 6, 1, 0, 1),
    ("fc7", 4096, 1, 1, 0, 1),
]


def test_caffenet_has_the_layers_of_the_reference_release():
    with torch.device("meta"):
        trunk = CaffeNet()
    convolutions = [
        (name, c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0], c.groups)
        for name, c in trunk.named_children()
        if isinstance(c, torch.nn.Conv2d)
    ]
    assert convolutions == REFERENCE
    order = [name for name, _ in trunk.named_children() if name.startswith(("conv", "pool", "norm"))]
    assert order == ["conv1", "pool1", "norm1", "conv2", "pool2", "norm2", "conv3", "conv4", "conv5", "pool5"]


def test_the_classifiers_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        caffenet, alexnet = CaffeNetClassifier(), AlexNet()
    assert sum(p.numel() for p in caffenet.parameters()) == 60_965_224  # Krizhevsky et al.: "60 million"
    last = 4096 * 1000 + 1000  # fc8, which the trunk lacks
    published = models.AlexNet_Weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(p.numel() for p in alexnet.parameters()) + last == published


def caffes_norm(x: np.ndarray, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> np.ndarray:
    """Caffe's lrn_layer.cpp across channels: x / (1 + alpha / size * sum of squares of the neighbours) ** beta."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - size // 2) : c + size // 2 + 1]
        out[:, c] = x[:, c] / (1 + alpha / size * (near**2).sum(1)) ** beta
    return out


@torch.inference_mode()
def test_caffenet_computes_what_caffes_layers_compute_one_by_one():
    """Convolutions in two groups as two convolutions, poolings that round up, and Caffe's formula for its norm."""
    torch.manual_seed(0)
    net = CaffeNet(width=1 / 8).eval()
    image = torch.randint(0, 256, (1, 3, 60, 75), dtype=torch.uint8)
    bgr = image.flip(1) - torch.tensor((104.00699, 116.66877, 122.67892)).view(3, 1, 1)

    def conv(x, name, padding, groups=1, stride=1):
        weight, bias = getattr(net, name).weight, getattr(net, name).bias
        parts = zip(x.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True)
        return torch.cat([F.relu(F.conv2d(a, w, b, stride, padding)) for a, w, b in parts], 1)

    def pool(x):
        """ceil((n - 3) / 2) + 1 windows; those that stick out at the far side see the rest."""
        pad = [(n - 3) % 2 for n in (x.shape[3], x.shape[2])]
        return F.max_pool2d(F.pad(x, (0, pad[0], 0, pad[1]), value=-torch.inf), 3, 2)

    def norm(x):
        return torch.from_numpy(caffes_norm(x.numpy()))

    pool1 = pool(conv(bgr, "conv1", 100, stride=4))
    pool2 = pool(conv(norm(pool1), "conv2", 2, groups=2))
    conv5 = conv(conv(conv(norm(pool2), "conv3", 1), "conv4", 1, 2), "conv5", 1, 2)
    fc7 = conv(conv(pool(conv5), "fc6", 0), "fc7", 0)
    for feature, expected in zip(net(image), (pool1, pool2, fc7), strict=True):
        assert expected.std() > 0
        torch.testing.assert_close(feature, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [CaffeNet, AlexNet])
def test_tight_padding_computes_the_same_in_the_middle_of_a_large_image(kind):
    torch.manual_seed(0)
    wide, tight = kind(width=1 / 16).eval(), kind("tight", width=1 / 16).eval()
    tight.load_state_dict(wide.state_dict())
    image = torch.randint(0, 256, (1, 3, 600, 600), dtype=torch.uint8)
    with torch.inference_mode():
        a, b = wide(image).fc7, tight(image).fc7
    assert a.shape == b.shape
    # A cell lies at 13 + 32 i and sees 355 pixels: of 600, cells 6 to 12 see no padding
    torch.testing.assert_close(a[..., 6:13, 6:13], b[..., 6:13, 6:13], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("width", [1 / 64, 1 / 10, 0.3])
def test_a_thin_caffenet_keeps_its_two_groups(width):
    net = CaffeNet(width=width)
    assert net(torch.zeros(1, 3, 1, 1)).fc7.shape[1] == net.channels.fc7
