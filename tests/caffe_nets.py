"""Small nets of every kind that Caffe has layers for."""

from functools import cache

import torch
from torch import Tensor

from fcn.caffe.caffemodel import read_caffemodel, write_caffemodel
from fcn.caffe.read import describe, to_state_dict
from fcn.caffe.write import to_layers
from fcn.model import FCN

SMALL = {"num_classes": 3, "width": 1 / 64}
NETS = {
    "fcn32s": SMALL | {"stride": 32},
    "fcn16s": SMALL | {"stride": 16},
    "fcn8s": SMALL | {"stride": 8},
    "at-once": SMALL | {"stride": 8, "at_once": True},
    "learned": SMALL | {"stride": 8, "learn_upscore": True},
    "tight 32s": SMALL | {"stride": 32, "padding": "tight"},
    "tight 16s": SMALL | {"stride": 16, "padding": "tight"},
    "tight 8s": SMALL | {"stride": 8, "padding": "tight"},
    "batch norm": SMALL | {"stride": 8, "batch_norm": True, "padding": "tight", "fc6_kernel": 3},
    "fc6 3x3": SMALL | {"stride": 8, "fc6_kernel": 3},
    "max fusion": SMALL | {"stride": 8, "fusion": "max"},
    "intermediate": SMALL | {"stride": 16, "learn_upscore": "intermediate"},
    "alexnet": SMALL | {"stride": 32, "backbone": "caffenet"},
    "alexnet tight 8s": SMALL | {"stride": 8, "backbone": "caffenet", "padding": "tight"},
    "torchvision's alexnet": SMALL | {"stride": 16, "backbone": "alexnet"},
    "torchvision": SMALL | {"stride": 16, "pixels": "torchvision"},
}


def random_net(**options) -> FCN:
    """A net whose every weight counts, as large at its end as at its beginning; upsampling as it is built."""
    torch.manual_seed(0)
    model = FCN(**options).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim > 1 and (not name.startswith("upscore") or options.get("learn_upscore")):
                tensor.normal_(0, tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point() and not name.startswith("upscore"):
                tensor.normal_()
    return model


@cache
def caffemodel(name: str) -> bytes:
    """The .caffemodel of one of NETS."""
    return write_caffemodel("net", to_layers(random_net(**NETS[name])))


def state_dict(data: bytes, **options) -> dict[str, Tensor]:
    """The state_dict of the net that a .caffemodel holds; options overrule those read from it."""
    layers = read_caffemodel(data)
    with torch.device("meta"):
        model = FCN(**(describe(layers).options | options))
    return to_state_dict(layers, model)
