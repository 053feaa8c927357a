"""The facts a faithful FCN must get right: what is expected, what this code gives, and the source."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from fcn.backbones.features import Backbone
from fcn.geometry import receptive_field
from fcn.loss import mean_pixel_cross_entropy
from fcn.metrics import ConfusionMatrix
from fcn.model import AT_ONCE_SCALES, BACKBONES, FCN, bilinear_kernel
from fcn.optim import batch_rule, parameter_groups
from fcn.pixels import CONVENTIONS

SMALL = 1 / 64  # of VGG-16's channels, for facts that do not depend on them
RELEASE = "reference release, "


class Fact(NamedTuple):
    """One fact; it holds if `expected` and `actual`, rounded alike, are equal."""

    name: str
    expected: object
    actual: object
    source: str

    @property
    def holds(self) -> bool:
        return self.expected == self.actual


def facts() -> Iterator[Fact]:
    """Yield all facts; takes seconds on a laptop."""
    for part in (_crops_and_kernels, _sizes, _initial_weights, _optimisation, _pixels, _metrics):
        yield from part()


def _crops_and_kernels() -> Iterator[Fact]:
    nets = (
        ("FCN-32s", FCN(2, 32, width=SMALL), {"score": 19}, 64, "voc-fcn32s"),
        ("FCN-16s", FCN(2, 16, width=SMALL), {"pool4": 5, "score": 27}, 32, "voc-fcn16s"),
        ("FCN-8s", FCN(2, 8, width=SMALL), {"pool4": 5, "pool3": 9, "score": 31}, 16, "voc-fcn8s"),
        ("FCN-AlexNet", FCN(2, 32, "caffenet", width=SMALL), {"score": 18}, 63, "voc-fcn-alexnet"),
    )
    for name, model, offsets, kernel, folder in nets:
        source = f"{RELEASE}{folder}/net.py"
        for layer, offset in offsets.items():
            yield Fact(f"{name} crop of {layer}", offset, getattr(model, f"offset_{layer}"), source)
        actual = model.get_submodule(model.last).kernel_size
        yield Fact(f"{name} last upsampling", (kernel, kernel), actual, source)


def _sizes() -> Iterator[Fact]:
    with torch.device("meta"):
        trainable = sum(p.numel() for p in FCN(21, 32).parameters() if p.requires_grad)
    yield Fact("FCN-32s-VGG16 learned parameters", 134_346_581, trainable, "layer shapes of net.py")
    for name, field in (("vgg16", 404), ("caffenet", 355)):
        actual = receptive_field(_trunk(name).children())
        yield Fact(f"receptive field of {name}", field, actual, "CVPR 2015, table 1")
    # The paper includes the average pooling that the FCN drops; torchvision has 3x3 where GoogLeNet has 5x5
    actual = receptive_field([*_trunk("googlenet", windows="paper").children(), nn.AvgPool2d(7, 1)])
    yield Fact("receptive field of GoogLeNet with its last pooling", 907, actual, "CVPR 2015, table 1")
    actual = receptive_field(_trunk("googlenet").children())
    yield Fact("receptive field of torchvision's googlenet", 379, actual, "layer shapes of torchvision")
    layers = list(_trunk("vgg16").children())
    rounds_up = all(layer.ceil_mode for layer in layers if isinstance(layer, nn.MaxPool2d))
    yield Fact("poolings that round up", True, rounds_up, "Caffe, pooling_layer.cpp")
    dropouts = [kind for kind in (type(layer).__name__ for layer in layers) if "Dropout" in kind]
    yield Fact("dropout, element by element", ["Dropout"] * 2, dropouts, f"{RELEASE}net.py")


def _initial_weights() -> Iterator[Fact]:
    for size, expected in ((4, [0.1875, 0.5625, 0.5625, 0.1875]), (3, [0.5, 1.0, 0.5])):
        row = [round(float(value), 4) for value in bilinear_kernel(size)[1]]
        yield Fact(f"bilinear kernel {size}, row 1", expected, row, f"{RELEASE}surgery.py")
    factors = tuple(AT_ONCE_SCALES.values())
    yield Fact("at-once factors", (0.01, 0.0001), factors, f"{RELEASE}voc-fcn8s-atonce/net.py")
    score = FCN(21, 8, width=SMALL)(torch.zeros(1, 3, 20, 30))
    loss = mean_pixel_cross_entropy(score, torch.zeros(1, 20, 30, dtype=torch.int64)).item()
    expected = round(math.log(21), 4)
    yield Fact("first loss a pixel, ln 21", expected, round(loss, 4), "score layers begin at zero")


def _optimisation() -> Iterator[Fact]:
    weights, biases = parameter_groups(FCN(2, 32, width=SMALL), 1.0, 5e-4)
    source = f"{RELEASE}net.py (lr_mult, decay_mult) and solver.prototxt"
    yield Fact("weights: lr factor, decay", (1.0, 5e-4), (weights["lr"], weights["weight_decay"]), source)
    yield Fact("biases: lr factor, decay", (2.0, 0.0), (biases["lr"], biases["weight_decay"]), source)
    for images, factor, momentum, digits in (
        (2, 3.98, 0.9801, 2),
        (4, 15.8, 0.9606, 1),
        (8, 61.8, 0.9227, 1),
    ):
        lr, decayed = batch_rule(1.0, 0.99, images)
        actual = (round(lr, digits), round(decayed, 4))
        name = f"batch rule for {images} images: lr, momentum"
        yield Fact(name, (factor, momentum), actual, "derived, as PAMI argues")


def _pixels() -> Iterator[Fact]:
    caffe = CONVENTIONS["caffe"]
    expected = (104.00699, 116.66877, 122.67892)
    yield Fact("mean subtracted, B G R", expected, caffe.mean[::-1], f"{RELEASE}voc_layers.py")
    yield Fact("channels in B, G, R order", True, caffe.is_bgr, f"{RELEASE}voc_layers.py")


def _metrics() -> Iterator[Fact]:
    hist = torch.tensor([[7, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    confusion = ConfusionMatrix(4).merge(hist)
    published = {"reference": 0.4259, "ground_truth": 0.6389, "absent_is_1": 0.5694, "absent_is_0": 0.3194}
    for convention, expected in published.items():
        actual = round(confusion.scores(convention).mean_iu, 4)
        yield Fact(f"mean IU of a hard case, {convention}", expected, actual, "measured on the peers' code")


def _trunk(name: str, **options: object) -> Backbone:
    """Return the backbone without memory for its weights: its layers are inspected, not run."""
    build: Callable[..., Backbone] = BACKBONES[name]
    with torch.device("meta"):
        return build("reference", **options)
