import pytest
import torch
from torch import nn

from fcn.model import FCN
from pipeline.distributed.batch_norm import across_workers, set_training
from pipeline.distributed.rank import SINGLE, Rank

TWO = Rank(0, 2, torch.device("cpu"))


def net(**options) -> FCN:
    torch.manual_seed(0)
    return FCN(3, 32, width=1 / 32, batch_norm=True, fc6_kernel=3, padding="tight", **options)


def norms(model: nn.Module) -> list[nn.Module]:
    return [layer for name, layer in model.named_modules() if name.rpartition(".")[2].startswith("bn")]


def test_every_batch_norm_is_synchronised_and_weights_keep_names_and_values():
    expected = net().state_dict()
    model = across_workers(net(), "sync", TWO)
    assert len(norms(model)) == 13
    assert {type(layer) for layer in norms(model)} == {nn.SyncBatchNorm}
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "batch_norm", "rank"),
    [({}, "local", TWO), ({}, "frozen", TWO), ({}, "sync", SINGLE), ({"fixed_trunk": True}, "sync", TWO)],
)
def test_batch_norm_stays_local_otherwise(options, batch_norm, rank):
    model = across_workers(net(**options), batch_norm, rank)
    assert {type(layer) for layer in norms(model)} == {nn.BatchNorm2d}


def test_frozen_statistics_stay_while_scale_and_shift_learn():
    model = net(score_init="random")
    set_training(model, "frozen")
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(torch.rand(2, 3, 32, 32) * 255).square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    assert all(layer.weight.grad is not None for layer in norms(model))
    assert model.training
    set_training(model, "local")
    model(torch.rand(2, 3, 32, 32) * 255)
    assert not torch.equal(model.backbone.bn1_1.running_mean, before["backbone.bn1_1.running_mean"])
