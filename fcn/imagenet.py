"""Published ImageNet classifiers under our layers' names, cast into fully convolutional trunks."""

from collections.abc import Mapping

from torch import Tensor

from fcn.surgery import convolutionalize
from fcn.vgg import BLOCKS

FC6_KERNEL = 7  # pool5 is 7x7 on the 224x224 crop the classifier was trained on


def vgg16_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of fcn.vgg.VGG16 from that of torchvision's vgg16; its last layer, the 1000 classes, is dropped.

    ValueError if a layer is missing. The weights expect torchvision's pixels: VGG16(pixels="torchvision").
    """
    names = {f"features.{index}": ours for index, ours in zip(_conv_indices(), _conv_names(), strict=True)}
    names |= {"classifier.0": "fc6", "classifier.3": "fc7"}
    missing = sorted(f"{theirs}.weight" for theirs in names if f"{theirs}.weight" not in state)
    if missing:
        raise ValueError(f"these are no weights of torchvision's vgg16; lacking {', '.join(missing[:4])}")
    cast = {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
    cast["fc6.weight"] = convolutionalize(cast["fc6.weight"], FC6_KERNEL)
    cast["fc7.weight"] = convolutionalize(cast["fc7.weight"], 1)
    return cast


def _conv_names() -> list[str]:
    return [f"conv{block}_{i}" for block, (_, num) in enumerate(BLOCKS, 1) for i in range(1, num + 1)]


def _conv_indices() -> list[int]:
    """Places of the convolutions in torchvision's `features`: each is followed by a ReLU, each block by a pooling."""
    indices, place = [], 0
    for _, num_convs in BLOCKS:
        for _ in range(num_convs):
            indices.append(place)
            place += 2
        place += 1
    return indices
