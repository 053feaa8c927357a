"""Our networks as Caffe's layers, under the names of the reference release's deploy.prototxt.

Two things differ: fixed upsampling, one kernel a class here, has C x C kernels in Caffe; and Caffe's Crop cannot begin
before its map does, as it must with tight padding, so that the map gets a border first.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fcn.backbones.speed import MemoryLayout
from fcn.caffe.caffemodel import CaffeError, Layer
from fcn.model import AT_ONCE_SCALES, FCN
from fcn.pixels import PixelNormalization

# A skip's scores end at most MAX_BORDER - offset cells before the scores they are fused with: poolings that round up
# leave 1 cell less of pool4 than fc7's upsampled scores have, and 3 cells less of pool3
MAX_BORDER = 3


def to_layers(model: FCN, height: int = 500, width: int = 500) -> list[Layer]:
    """Return the model's layers as in the reference release's deploy.prototxt, with their blobs.

    model: the net; its weights are shared, not copied.
    height, width: of the input layer, in pixels; users of Caffe reshape it.

    Raises CaffeError for a layer that Caffe lacks.
    """
    top = "data"
    shape = {"dim": [1, 3, height, width]}
    layers = [Layer("input", "Input", top=top, params={"input_param": {"shape": shape}})]
    tops = {}
    for name, module in model.backbone.named_children():  # a Backbone runs them in this order
        layers += (new := list(_as_layers(name, module, top)))
        tops[name] = top = new[-1].top if new else top
    layers += _as_layers("score_fr", model.score_fr, top)
    top = "score_fr"
    skips = (("pool4", "upscore2"), ("pool3", "upscore_pool4"))[: (32, 16, 8).index(model.stride)]
    for (pool, upscore), tap in zip(skips, model.backbone.taps[1::-1], strict=False):
        layers += _as_layers(upscore, model.get_submodule(upscore), top)
        layers += _skip(model, pool, tops[tap], upscore)
        top = f"fuse_{pool}"
    layers += _as_layers(model.last, model.get_submodule(model.last), top)
    return [*layers, _crop("score", model.last, "data", model.offset_score)]


def describe_pixels(model: FCN) -> str:
    """Return the net's pixel normalisation as a comment for the prototxt, which has no field for it."""
    pixels: Any = model.backbone.pixels
    order = slice(None, None, -1 if pixels.is_bgr else 1)
    mean, std = (values.flatten().tolist()[order] for values in (pixels.mean, pixels.std))
    mean, std = (", ".join(f"{value:.8g}" for value in values) for values in (mean, std))
    channels = "B, G, R" if pixels.is_bgr else "R, G, B"
    return f"data: {channels} in 0..255, minus ({mean}), divided by ({std})"


def _skip(model: FCN, pool: str, bottom: str, upscore: str) -> Iterator[Layer]:
    """Yield the layers that score the features `bottom` and fuse the scores with `upscore`."""
    score: Any = model.get_submodule(f"score_{pool}")
    offset: int = getattr(model, f"offset_{pool}")
    if model.at_once:
        factor, scale = torch.full((score.in_channels,), AT_ONCE_SCALES[pool]), f"scale_{pool}"
        yield Layer(scale, "Scale", (factor,), (bottom,), scale, {"scale_param": {"bias_term": False}})
        bottom = scale
    yield from _as_layers(f"score_{pool}", score, bottom)
    bottom = f"score_{pool}"
    if (border := MAX_BORDER - offset) > 0:
        if model.fusion == "max":
            raise CaffeError(
                "Caffe has no layer that pads with -inf, which maximum fusion at tight padding needs"
            )
        yield _border(f"pad_{pool}", bottom, score.out_channels, border)
        bottom, offset = f"pad_{pool}", offset + border
    yield _crop(f"score_{pool}c", bottom, upscore, offset)
    fuse, param = f"fuse_{pool}", {"eltwise_param": {"operation": model.fusion.upper()}}
    yield Layer(fuse, "Eltwise", (), (upscore, f"score_{pool}c"), fuse, param)


def _border(name: str, bottom: str, num: int, width: int) -> Layer:
    """Return a layer that pads scores with zeros, as `aligned` does: an identity convolution with padding."""
    param = {"num_output": num, "bias_term": False, "pad": width, "kernel_size": 1, "group": num}
    return Layer(
        name, "Convolution", (torch.ones(num, 1, 1, 1),), (bottom,), name, {"convolution_param": param}
    )


def _crop(name: str, bottom: str, like: str, offset: int) -> Layer:
    return Layer(name, "Crop", (), (bottom, like), name, {"crop_param": {"axis": 2, "offset": offset}})


def _as_layers(name: str, module: nn.Module, bottom: str) -> Iterator[Layer]:
    """Yield a module as Caffe's layers; none for dropout, memory layouts and pixel normalisation."""
    blobs = [
        tuple(getattr(module, tensor).detach() for tensor in tensors)
        for _, _, tensors in parts_of(name, module)
    ]
    match module:
        case nn.Conv2d() | nn.ConvTranspose2d():
            (((_, kind, _),), ((weight, *bias),)) = parts_of(name, module), blobs
            if isinstance(module, nn.ConvTranspose2d) and weight.shape[1] == 1:
                weight = full_kernels(weight)
            yield Layer(name, kind, (weight, *bias), (bottom,), name, {"convolution_param": _window(module)})
        case nn.BatchNorm2d():
            parameters = ({"batch_norm_param": {"eps": module.eps}}, {"scale_param": {"bias_term": True}})
            blobs[0] += (torch.ones(1),)
            for (part, kind, _), tensors, param in zip(
                parts_of(name, module), blobs, parameters, strict=True
            ):
                yield Layer(part, kind, tensors, (bottom,), bottom, param)
        case nn.MaxPool2d(ceil_mode=True):  # Caffe's rounds up, always
            param = {"pool": "MAX", "kernel_size": _side(module.kernel_size), "stride": _side(module.stride)}
            yield Layer(name, "Pooling", (), (bottom,), name, {"pooling_param": param})
        case nn.LocalResponseNorm():
            param = {"local_size": module.size, "alpha": module.alpha, "beta": module.beta, "k": module.k}
            yield Layer(name, "LRN", (), (bottom,), name, {"lrn_param": param})
        case nn.ReLU():
            yield Layer(name, "ReLU", (), (bottom,), bottom)
        case nn.Dropout() | PixelNormalization() | MemoryLayout():
            return
        case _:
            raise CaffeError(f"Caffe has no layer for {name}, {module}")


def full_kernels(weight: Tensor) -> Tensor:
    """Return (C, 1, k, k) kernels, one per class, as the (C, C, k, k) kernels that compute the same."""
    num = weight.shape[0]
    full = weight.new_zeros(num, num, *weight.shape[2:])
    full[torch.arange(num), torch.arange(num)] = weight[:, 0]
    return full


def parts_of(name: str, module: nn.Module) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (name, type, names of our tensors) of each Caffe layer that holds weights of a module."""
    match module:
        case nn.Conv2d() | nn.ConvTranspose2d():
            kind = "Convolution" if isinstance(module, nn.Conv2d) else "Deconvolution"
            return [(name, kind, ("weight",) if module.bias is None else ("weight", "bias"))]
        case nn.BatchNorm2d():
            return [
                (name, "BatchNorm", ("running_mean", "running_var")),
                (f"{name}_scale", "Scale", ("weight", "bias")),
            ]
        case _:
            return []


def _window(module: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, object]:
    assert set(module.dilation) == {1}, module
    window: dict[str, object] = {"num_output": module.out_channels}
    if module.bias is None:
        window["bias_term"] = False
    window |= {"pad": _side(module.padding), "kernel_size": _side(module.kernel_size)}
    window["stride"] = _side(module.stride)
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        window["group"] = module.groups
    return window


def _side(value: object) -> int:
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise CaffeError(f"a window of {value} is not square")
    return side
