"""Caffe's layers as our networks: which network a .caffemodel holds, and its blobs as that network's state_dict.

Names on both sides are the reference release's. Two things differ: the fully connected layers of ImageNet classifiers
are matrices, and Caffe's Deconvolution has C x C kernels where our fixed upsampling has one per class.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcn.backbones import alexnet, vgg
from fcn.backbones.vgg import FC_CHANNELS
from fcn.caffe.caffemodel import ENUMS, CaffeError, Layer
from fcn.caffe.write import MAX_BORDER, full_kernels, parts_of
from fcn.model import AT_ONCE_SCALES, FCN
from fcn.surgery import first_names

# Our padding of a trunk whose first convolution pads by the key; None: the layer does not give it
PADDINGS = {
    None: "reference",
    vgg.REFERENCE_PADDING: "reference",
    vgg.TIGHT_PADDING: "tight",
    alexnet.TIGHT_PADDING: "tight",
}
MAX_CLASSES = 1000  # full upsampling kernels for more would take more than protobuf's 2 GiB
CLASSIFIER = "fc8"  # the 1000 classes of an ImageNet net, dropped as in the reference surgery.py


class Description(NamedTuple):
    """The network that a .caffemodel holds.

    is_fcn: whether it is an FCN; else it is an ImageNet classifier, whose trunk is used.
    options: FCN's arguments, as far as the layers give them.
    """

    is_fcn: bool
    options: dict[str, Any]


def describe(layers: Sequence[Layer]) -> Description:
    """Return which of our networks these layers are; raise CaffeError if they are none of them.

    Weights alone do not show the padding: "reference" is assumed unless conv1 gives it. They show neither whether
    upsampling was learned nor the pixel convention, which is assumed to be Caffe's for Caffe's nets.
    """
    blobs = {layer.name: layer.blobs for layer in layers if layer.blobs}
    first = next((name for name in ("conv1_1", "conv1") if {name, "fc6", "fc7"} <= blobs.keys()), None)
    if first is None:
        raise CaffeError(
            f"no layers conv1_1 (VGG-16) or conv1 (AlexNet) with fc6 and fc7, but {first_names(blobs)}; known are "
            "the reference release's FCNs, VGG_ILSVRC_16_layers and bvlc_reference_caffenet"
        )
    options: dict[str, Any] = {"width": _num_outputs(blobs["fc7"]) / FC_CHANNELS, "pixels": "caffe"}
    if first == "conv1_1":
        channels = _num_outputs(blobs["fc6"]) * _num_outputs(blobs.get("conv5_3", blobs["fc6"]))
        fc6_kernel = math.isqrt(blobs["fc6"][0].numel() // channels)
        options |= {"backbone": "vgg16", "batch_norm": "bn1_1" in blobs, "fc6_kernel": fc6_kernel}
    elif "conv2" in blobs and blobs["conv2"][0].shape[1:2] == (_num_outputs(blobs["conv1"]),):  # no groups
        options |= {"backbone": "alexnet", "pixels": "torchvision"}
    else:
        options |= {"backbone": "caffenet"}
    if "score_fr" not in blobs:
        return Description(False, options)
    if (num_classes := _num_outputs(blobs["score_fr"])) > MAX_CLASSES:
        raise CaffeError(f"score_fr has {num_classes} classes; at most {MAX_CLASSES} are read")
    options |= {"num_classes": num_classes, "at_once": "scale_pool4" in blobs}
    options |= {"stride": 8 if "score_pool3" in blobs else 16 if "score_pool4" in blobs else 32}
    fuses_by_max = _param(layers, "fuse_pool4", "eltwise_param", "operation") == ENUMS["MAX"]
    pad = _param(layers, first, "convolution_param", "pad")
    if pad not in PADDINGS:
        raise CaffeError(f"{first} pads by {pad}; known: {', '.join(map(str, PADDINGS))}")
    return Description(True, options | {"fusion": "max" if fuses_by_max else "sum", "padding": PADDINGS[pad]})


def _param(layers: Sequence[Layer], name: str, param: str, key: str) -> int | None:
    """Return a parameter of the layer of this name. Caffe's own files hold parameters; bare weights do not: None."""
    params: Any = next((layer.params.get(param, {}) for layer in layers if layer.name == name), {})
    return params.get(key)


def _num_outputs(blobs: Sequence[Tensor]) -> int:
    """Return a layer's number of outputs, from its bias, which is a vector in every format of Caffe's."""
    return blobs[-1].numel()


def to_state_dict(layers: Sequence[Layer], net: nn.Module) -> dict[str, Tensor]:
    """Return Caffe's layers as the state_dict of `net`, float32.

    A batch norm's num_batches_tracked, which Caffe lacks, is 0.

    layers: as read_caffemodel returns them.
    net: an FCN or its trunk. Only its names and shapes are used, so it may be on the meta device.

    Raises CaffeError unless the layers are exactly those of the net.
    """
    blobs = {layer.name: layer.blobs for layer in layers if layer.blobs}
    state, missing = {}, []
    for path, module in net.named_modules():
        for name, _, tensors in parts_of(path.rpartition(".")[2], module):
            if name not in blobs:
                missing.append(name)
                continue
            own_blobs = blobs.pop(name)
            if tensors[0] == "running_mean":
                own_blobs = _without_factor(name, own_blobs)
            if len(own_blobs) != len(tensors):
                raise CaffeError(
                    f"layer {name} has {len(own_blobs)} blobs, {len(tensors)} expected: {', '.join(tensors)}"
                )
            for tensor, blob in zip(tensors, own_blobs, strict=True):
                shape = tuple(getattr(module, tensor).shape)
                state[f"{path}.{tensor}"] = _fitted(f"{name}.{tensor}", blob.float(), shape)
        if isinstance(module, FCN) and module.at_once:
            scales = [f"scale_{skip}" for skip in AT_ONCE_SCALES if hasattr(module, f"score_{skip}")]
            missing += [name for name in scales if name not in blobs]
        if isinstance(module, nn.BatchNorm2d):
            state[f"{path}.num_batches_tracked"] = torch.tensor(0)
    foreign = [name for name in blobs if not _is_implied(name, blobs[name], net)]
    if missing or foreign:
        raise CaffeError(
            f"the layers do not fit the network; missing: {first_names(missing)}; "
            f"unexpected: {first_names(foreign)}"
        )
    return state


def _is_implied(name: str, blobs: Sequence[Tensor], net: nn.Module) -> bool:
    """Return whether our net does the layer's work without a tensor of its own."""
    if not isinstance(net, FCN):
        return name.startswith(CLASSIFIER)
    part, _, skip = name.partition("_")
    if part == "scale" and net.at_once and skip in AT_ONCE_SCALES:
        if len(blobs) == 1 and (blobs[0].float() == torch.tensor(AT_ONCE_SCALES[skip])).all():
            return True
        raise CaffeError(
            f"{name} must multiply by {AT_ONCE_SCALES[skip]} alone, as in the reference at-once net"
        )
    has_border = getattr(net, f"offset_{skip}", MAX_BORDER) < MAX_BORDER
    return part == "pad" and has_border and bool((blobs[0] == 1).all())


def _without_factor(name: str, blobs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the running mean and variance of Caffe's BatchNorm, which holds sums and their common divisor."""
    if len(blobs) != 3 or blobs[2].numel() != 1 or not blobs[2].all():
        raise CaffeError(
            f"layer {name} must be a BatchNorm of mean, variance and their divisor, which is not 0"
        )
    return [blob / blobs[2].flatten() for blob in blobs[:2]]


def _fitted(name: str, blob: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the blob in our shape: a matrix becomes a kernel by a flat copy, (1, 1, 1, O) becomes (O,)."""
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
    """Return the shape without leading ones, with which formats before 2015 fill every shape up to four."""
    begin = next((i for i, side in enumerate(shape) if side != 1), len(shape))
    return tuple(shape[begin:])
