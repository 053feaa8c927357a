"""The facts a faithful FCN must get right, each with what is expected, what this code gives, and the source."""

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

SMALL = 1 / 64  # of VGG-16's channels: what does not depend on them is looked at in a small net
RELEASE = "reference release, "


class Fact(NamedTuple):
    """expected and found, rounded alike, are the same if the fact holds."""

    name: str
    expected: object
    found: object
    source: str

    @property
    def holds(self) -> bool:
        return self.expected == self.found


def facts() -> Iterator[Fact]:
    """All of them; seconds on a laptop."""
    for part in (_offsets, _sizes, _kernels, _start, _optimisation, _pixels, _metrics):
        yield from part()


def _offsets() -> Iterator[Fact]:
    table = {
        32: (("score", 19),),
        16: (("pool4", 5), ("score", 27)),
        8: (("pool4", 5), ("pool3", 9), ("score", 31)),
    }
    for stride, offsets in table.items():
        model = FCN(2, stride, width=SMALL)
        for name, offset in offsets:
            found = getattr(model, f"offset_{name}")
            yield Fact(f"FCN-{stride}s crop of {name}", offset, found, f"{RELEASE}voc-fcn{stride}s/net.py")
    alexnet = FCN(2, 32, "caffenet", width=SMALL)
    yield Fact("FCN-AlexNet crop of score", 18, alexnet.offset_score, f"{RELEASE}voc-fcn-alexnet/net.py")


def _sizes() -> Iterator[Fact]:
    with torch.device("meta"):
        trainable = sum(p.numel() for p in FCN(21, 32).parameters() if p.requires_grad)
    yield Fact("FCN-32s-VGG16 learned parameters", 134_346_581, trainable, "layer shapes of net.py")
    for name, field in (("vgg16", 404), ("caffenet", 355)):
        found = receptive_field(_trunk(name).children())
        yield Fact(f"receptive field of {name}", field, found, "CVPR 2015, table 1")
    # The paper counts the average pooling that the FCN leaves away; torchvision has 3x3 where GoogLeNet has 5x5
    found = receptive_field([*_trunk("googlenet", windows="paper").children(), nn.AvgPool2d(7, 1)])
    yield Fact("receptive field of GoogLeNet with its last pooling", 907, found, "CVPR 2015, table 1")
    found = receptive_field(_trunk("googlenet").children())
    yield Fact("receptive field of torchvision's googlenet", 379, found, "layer shapes of torchvision")
    poolings = [layer for layer in _trunk("vgg16").children() if isinstance(layer, nn.MaxPool2d)]
    rounds_up = all(layer.ceil_mode for layer in poolings)
    yield Fact("poolings that round up", True, rounds_up, "Caffe, pooling_layer.cpp")
    kinds = [type(layer).__name__ for layer in _trunk("vgg16").children()]
    dropouts = [kind for kind in kinds if "Dropout" in kind]
    yield Fact("dropout, element by element", ["Dropout"] * 2, dropouts, f"{RELEASE}net.py")


def _kernels() -> Iterator[Fact]:
    for stride, size in ((32, 64), (16, 32), (8, 16)):
        layer = FCN(2, stride, width=SMALL)
        found = layer.get_submodule(layer.last).kernel_size
        yield Fact(f"FCN-{stride}s last upsampling", (size, size), found, f"{RELEASE}voc-fcn{stride}s/net.py")
    alexnet = FCN(2, 32, "caffenet", width=SMALL)
    yield Fact(
        "FCN-AlexNet upsampling",
        (63, 63),
        alexnet.get_submodule("upscore").kernel_size,
        f"{RELEASE}voc-fcn-alexnet/net.py",
    )
    row = [round(float(value), 4) for value in bilinear_kernel(4)[1]]
    yield Fact("bilinear kernel 4, row 1", [0.1875, 0.5625, 0.5625, 0.1875], row, f"{RELEASE}surgery.py")
    row = [round(float(value), 4) for value in bilinear_kernel(3)[1]]
    yield Fact("bilinear kernel 3, row 1", [0.5, 1.0, 0.5], row, f"{RELEASE}surgery.py")
    yield Fact(
        "at-once factors", (0.01, 0.0001), tuple(AT_ONCE_SCALES.values()), f"{RELEASE}voc-fcn8s-atonce/net.py"
    )


def _start() -> Iterator[Fact]:
    model = FCN(21, 8, width=SMALL)
    score = model(torch.zeros(1, 3, 20, 30))
    loss = mean_pixel_cross_entropy(score, torch.zeros(1, 20, 30, dtype=torch.int64)).item()
    yield Fact(
        "first loss a pixel, ln 21", round(math.log(21), 4), round(loss, 4), "score layers begin at zero"
    )


def _optimisation() -> Iterator[Fact]:
    weights, biases = parameter_groups(FCN(2, 32, width=SMALL), 1.0, 5e-4)
    source = f"{RELEASE}net.py (lr_mult, decay_mult) and solver.prototxt"
    yield Fact("weights: lr factor, decay", (1.0, 5e-4), (weights["lr"], weights["weight_decay"]), source)
    yield Fact("biases: lr factor, decay", (2.0, 0.0), (biases["lr"], biases["weight_decay"]), source)
    for images, factor, momentum in ((2, 3.98, 0.9801), (4, 15.8, 0.9606), (8, 61.8, 0.9227)):
        lr, found = batch_rule(1.0, 0.99, images)
        digits = 2 if images == 2 else 1
        expected, got = (factor, momentum), (round(lr, digits), round(found, 4))
        yield Fact(f"batch rule for {images} images: lr, momentum", expected, got, "derived, as PAMI argues")


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
        found = round(confusion.scores(convention).mean_iu, 4)
        yield Fact(f"mean IU of a hard case, {convention}", expected, found, "measured on the peers' code")


def _trunk(name: str, **options: object) -> Backbone:
    """The backbone on a device without memory: its layers are looked at, not run."""
    build: Callable[..., Backbone] = BACKBONES[name]
    with torch.device("meta"):
        return build("reference", **options)
