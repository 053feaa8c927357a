"""torchvision's classifiers with fewer channels, for tests to cast."""

import torch
from torch import nn
from torchvision import models
from torchvision.models.vgg import make_layers


def thin_vgg16(num_classes: int = 10) -> models.VGG:
    """vgg16 at an eighth of its width, random."""
    layout = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    features = make_layers(layout)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    with torch.device("meta"):  # its full fully connected layers, 120 million weights, are never made
        net = models.VGG(features, init_weights=False)
    net.classifier[0], net.classifier[3] = nn.Linear(64 * 7 * 7, 512), nn.Linear(512, 512)
    net.classifier[6] = nn.Linear(512, num_classes)
    return net


def thin_alexnet(num_classes: int = 10) -> models.AlexNet:
    """alexnet with an eighth of the channels in fc6 and fc7, random."""
    net = models.AlexNet(num_classes)
    net.classifier[1], net.classifier[4] = nn.Linear(256 * 6 * 6, 512), nn.Linear(512, 512)
    net.classifier[6] = nn.Linear(512, num_classes)
    return net
