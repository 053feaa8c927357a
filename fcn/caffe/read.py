"""Caffe's layers as our networks: which of them a .caffemodel holds, and its blobs as that network's state_dict.

Names are the reference release's on both sides. What differs is told here: fully connected layers of the ImageNet
classifiers are matrices, and Caffe's Deconvolution has C x C kernels where our fixed upsampling has one a class.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcn.backbones import alexnet, vgg
from fcn.backbones.vgg import FC_CHANNELS
from fcn.caffe.caffemodel import ENUMS, CaffeError, Layer
from fcn.caffe.write import BEHIND, full_kernels, parts_of
from fcn.model import AT_ONCE_SCALES, FCN

# What conv1 pads by, in each trunk; None: the layer does not say
PADDINGS = {
    None: "reference",
    vgg.REFERENCE_PADDING: "reference",
    vgg.TIGHT_PADDING: "tight",
    alexnet.TIGHT_PADDING: "tight",
}
MAX_CLASSES = 1000  # full upsampling kernels for more would take more than protobuf's 2 GiB
CLASSIFIER = "fc8"  # the 1000 classes of an ImageNet net, dropped (reference surgery.py does)


class Description(NamedTuple):
    """What a .caffemodel holds. options: FCN's arguments as far as the layers tell them.

    is_fcn: or else an ImageNet classifier, of which the trunk is used.
    """

    is_fcn: bool
    options: dict[str, Any]


def describe(layers: Sequence[Layer]) -> Description:
    """Which of our networks these layers are; CaffeError if none.

    Weights alone do not tell the padding: if conv1 does not say it, "reference". Nor do they tell whether upsampling
    was learned, nor which pixels: Caffe's are taken for Caffe's nets.
    """
    blobs = {layer.name: layer.blobs for layer in layers if layer.blobs}
    first = next((name for name in ("conv1_1", "conv1") if {name, "fc6", "fc7"} <= blobs.keys()), None)
    if first is None:
        raise CaffeError(
            f"no layers conv1_1 (VGG-16) or conv1 (AlexNet) with fc6 and fc7, but {_some(list(blobs))}; "
            "known are the reference release's FCNs, VGG_ILSVRC_16_layers and bvlc_reference_caffenet"
        )
    options: dict[str, Any] = {"width": _outputs(blobs["fc7"]) / FC_CHANNELS, "pixels": "caffe"}
    if first == "conv1_1":
        channels = _outputs(blobs["fc6"]) * _outputs(blobs.get("conv5_3", blobs["fc6"]))
        fc6_kernel = math.isqrt(blobs["fc6"][0].numel() // channels)
        options |= {"backbone": "vgg16", "batch_norm": "bn1_1" in blobs, "fc6_kernel": fc6_kernel}
    elif "conv2" in blobs and blobs["conv2"][0].shape[1:2] == (
        _outputs(blobs["conv1"]),
    ):  # conv2 has no groups
        options |= {"backbone": "alexnet", "pixels": "torchvision"}
    else:
        options |= {"backbone": "caffenet"}
    if "score_fr" not in blobs:
        return Description(False, options)
    if (num_classes := _outputs(blobs["score_fr"])) > MAX_CLASSES:
        raise CaffeError(f"score_fr tells {num_classes} classes apart, at most {MAX_CLASSES} are believed")
    options |= {"num_classes": num_classes, "at_once": "scale_pool4" in blobs}
    options |= {"stride": 8 if "score_pool3" in blobs else 16 if "score_pool4" in blobs else 32}
    fuses_by_max = _says(layers, "fuse_pool4", "eltwise_param", "operation") == ENUMS["MAX"]
    pad = _says(layers, first, "convolution_param", "pad")
    if pad not in PADDINGS:
        raise CaffeError(f"{first} pads by {pad}; known: {', '.join(map(str, PADDINGS))}")
    return Description(True, options | {"fusion": "max" if fuses_by_max else "sum", "padding": PADDINGS[pad]})


def _says(layers: Sequence[Layer], name: str, param: str, key: str) -> int | None:
    """What a layer of the .caffemodel says of itself; None if nothing. Caffe's own files do, bare weights do not."""
    said: Any = next((layer.params.get(param, {}) for layer in layers if layer.name == name), {})
    return said.get(key)


def _outputs(blobs: Sequence[Tensor]) -> int:
    """Of a layer by its bias, which is a vector in Caffe's every format."""
    return blobs[-1].numel()


def to_state_dict(layers: Sequence[Layer], net: nn.Module) -> dict[str, Tensor]:
    """The state_dict of `net`, float32, from Caffe's layers. CaffeError unless they are exactly its own.

    net: an FCN or its trunk alone, of which only names and shapes are used: it may lie on the meta device.
    A batch norm's num_batches_tracked, which Caffe lacks, is 0.
    """
    blobs = {layer.name: layer.blobs for layer in layers if layer.blobs}
    state, missing = {}, []
    for path, module in net.named_modules():
        for name, _, tensors in parts_of(path.rpartition(".")[2], module):
            if name not in blobs:
                missing.append(name)
                continue
            found = (
                _without_factor(name, blobs.pop(name)) if tensors[0] == "running_mean" else blobs.pop(name)
            )
            if len(found) != len(tensors):
                raise CaffeError(
                    f"layer {name} has {len(found)} blobs, {len(tensors)} expected: {', '.join(tensors)}"
                )
            for tensor, blob in zip(tensors, found, strict=True):
                shape = tuple(getattr(module, tensor).shape)
                state[f"{path}.{tensor}"] = _fitted(f"{name}.{tensor}", blob.float(), shape)
        if isinstance(module, FCN) and module.at_once:
            scales = [f"scale_{skip}" for skip in AT_ONCE_SCALES if hasattr(module, f"score_{skip}")]
            missing += [name for name in scales if name not in blobs]
        if isinstance(module, nn.BatchNorm2d):
            state[f"{path}.num_batches_tracked"] = torch.tensor(0)
    foreign = [name for name in blobs if not _is_no_weight(name, blobs[name], net)]
    if missing or foreign:
        raise CaffeError(f"the layers do not fit: lacking {_some(missing)}; not known {_some(foreign)}")
    return state


def _is_no_weight(name: str, blobs: Sequence[Tensor], net: nn.Module) -> bool:
    """Whether a layer is one that our net has no tensor for, and need not."""
    if not isinstance(net, FCN):
        return name.startswith(CLASSIFIER)
    part, _, skip = name.partition("_")
    if part == "scale" and net.at_once and skip in AT_ONCE_SCALES:
        if len(blobs) == 1 and (blobs[0].float() == torch.tensor(AT_ONCE_SCALES[skip])).all():
            return True
        raise CaffeError(
            f"{name} must multiply by {AT_ONCE_SCALES[skip]} alone, as the reference at-once net does"
        )
    return part == "pad" and getattr(net, f"offset_{skip}", BEHIND) < BEHIND and bool((blobs[0] == 1).all())


def _without_factor(name: str, blobs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The running mean and variance of Caffe's BatchNorm, which keeps sums and what to divide them by."""
    if len(blobs) != 3 or blobs[2].numel() != 1 or not blobs[2].all():
        raise CaffeError(
            f"layer {name} is no BatchNorm with mean, variance and the factor they are divided by"
        )
    return [blob / blobs[2].flatten() for blob in blobs[:2]]


def _fitted(name: str, blob: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The blob in our shape: a matrix becomes a kernel by a flat copy, as (1, 1, 1, O) becomes (O,)."""
    as_matrix = (shape[0], math.prod(shape[1:]))
    if _stripped(blob.shape) in (_stripped(shape), _stripped(as_matrix)):
        return blob.reshape(shape)
    num, kernel = shape[0], shape[2:]
    each = torch.arange(num)
    if name.startswith("upscore") and blob.shape == (num, num, *kernel) and shape[1] == 1:
        if blob.count_nonzero() != blob[each, each].count_nonzero():
            raise CaffeError(
                f"{name} mixes classes: its kernels off the diagonal are not zero; import it with learn_upscore"
            )
        return blob[each, each].unsqueeze(1)
    if name.startswith("upscore") and blob.shape == (num, 1, *kernel) and shape[1] == num:
        return full_kernels(blob)
    raise CaffeError(f"{name} is {tuple(blob.shape)} in the .caffemodel, {shape} here")


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    """Without the ones it begins with: formats before 2015 fill every shape up to four."""
    begin = next((i for i, side in enumerate(shape) if side != 1), len(shape))
    return tuple(shape[begin:])


def _some(names: Sequence[str]) -> str:
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "none"
