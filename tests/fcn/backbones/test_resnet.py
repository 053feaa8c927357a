import torch
from torchvision.models import ResNet50_Weights

from fcn.backbones.resnet import ResNet50


def test_with_its_1000_classes_it_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = ResNet50()
    published = ResNet50_Weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(p.numel() for p in net.parameters()) + 2048 * 1000 + 1000 == published


def test_a_width_scales_every_stage():
    assert ResNet50(width=1 / 16).channels == (32, 64, 128)
