"""Caffe's layers as our networks."""

import pytest
import torch
from torch import Tensor

from fcn.caffe.caffemodel import CaffeError, Layer, read_caffemodel, write_caffemodel
from fcn.caffe.read import describe
from tests.caffe_nets import NETS, caffemodel, random_net, state_dict


def changed(name: str, **blobs: tuple[Tensor, ...] | None) -> bytes:
    """The .caffemodel of one of NETS with other blobs in some layers; None takes a layer away."""
    kept = [layer for layer in read_caffemodel(caffemodel(name)) if layer.name not in blobs]
    new = [Layer(layer, "Convolution", tensors) for layer, tensors in blobs.items() if tensors is not None]
    return write_caffemodel("net", kept + new)


@pytest.mark.parametrize("name", NETS)
def test_a_net_that_went_to_caffe_and_back_is_the_same_to_the_bit(name: str):
    options = NETS[name]
    is_fcn, described = describe(read_caffemodel(caffemodel(name)))
    not_in_file = {key: options[key] for key in ("learn_upscore", "pixels") if key in options}
    assert is_fcn
    assert described | options == described | not_in_file
    before, after = random_net(**options).state_dict(), state_dict(caffemodel(name), **not_in_file)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_padding_is_the_references_unless_the_first_layer_gives_ours():
    layers = read_caffemodel(caffemodel("tight 32s"))
    assert describe([layer._replace(params={}) for layer in layers]).options["padding"] == "reference"
    other = {"convolution_param": {"pad": 1}}
    layers = [layer._replace(params=other) if layer.name == "conv1_1" else layer for layer in layers]
    with pytest.raises(CaffeError, match="conv1_1 pads by 1; known: None, 100, 4, 36"):
        describe(layers)


def test_fixed_upsampling_can_be_imported_to_be_learned_from_full_kernels_or_one_a_class():
    full = state_dict(caffemodel("fcn32s"), learn_upscore=True)["upscore.weight"]
    grouped = state_dict(caffemodel("fcn32s"))["upscore.weight"]
    assert full.shape == (3, 3, 64, 64)
    assert torch.equal(full[torch.arange(3), torch.arange(3)], grouped[:, 0])
    data = changed("fcn32s", upscore=(grouped,))
    assert torch.equal(state_dict(data, learn_upscore=True)["upscore.weight"], full)


def test_batch_norms_sums_are_divided_by_their_factor():
    """Caffe's BatchNorm keeps sums of means and their divisor."""
    layers = read_caffemodel(caffemodel("batch norm"))
    mean, variance = next(layer.blobs[:2] for layer in layers if layer.name == "bn1_1")
    state = state_dict(changed("batch norm", bn1_1=(4 * mean, 4 * variance, torch.tensor([4.0]))))
    assert torch.equal(state["backbone.bn1_1.running_mean"], mean)
    with pytest.raises(CaffeError, match="bn1_1"):
        state_dict(changed("batch norm", bn1_1=(mean, variance, torch.tensor([0.0]))))


@pytest.mark.parametrize(
    ("name", "blobs", "message"),
    [
        ("fcn32s", {"conv3_2": None}, "missing: conv3_2; unexpected: none"),
        ("fcn32s", {"conv9_9": (torch.zeros(1),)}, "missing: none; unexpected: conv9_9"),
        ("fcn32s", {"score_fr": (torch.zeros(3, 64, 1, 1),)}, "score_fr has 1 blobs, 2 .*: weight, bias"),
        (
            "fcn32s",
            {"conv3_2": (torch.zeros(4, 4, 5, 5), torch.zeros(4))},
            r"conv3_2\.weight is \(4, 4, 5, 5\) .*\(4, 4, 3, 3\)",
        ),
        (
            "fcn32s",
            {"score_fr": (torch.zeros(20_000, 1), torch.zeros(20_000))},
            "20000 classes; at most 1000",
        ),
        ("fcn32s", {"conv1_1": None, "fc6": None}, "no layers conv1_1"),
        ("at-once", {"scale_pool4": (torch.full((8,), 0.02),)}, r"scale_pool4 .*0\.01"),
        ("at-once", {"scale_pool3": None}, "missing: scale_pool3; unexpected: none"),
        ("learned", {}, r"upscore2\.weight mixes classes.*learn_upscore"),
    ],
)
def test_layers_of_another_net_are_refused_by_name(name: str, blobs: dict, message: str):
    with pytest.raises(CaffeError, match=message):
        state_dict(changed(name, **blobs))
