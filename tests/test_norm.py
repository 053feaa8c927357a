"""That synced batch norm gives the gradients of one big batch is held in test_step.py, with real processes."""

import torch
from torch import nn

from fcn.model import FCN
from pipeline.norm import SyncedBatchNorm, across_workers, set_training
from pipeline.place import ALONE, Place

TWO = Place(0, 2, torch.device("cpu"))


def net(**options) -> FCN:
    torch.manual_seed(0)
    return FCN(3, 32, width=1 / 32, batch_norm=True, fc6_kernel=3, padding="tight", **options)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_every_batch_norm_is_synced_and_weights_keep_names_and_values():
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert across_workers(model, "sync", TWO) is model
    assert len(norms(model)) == 13
    assert all(isinstance(layer, SyncedBatchNorm) for layer in norms(model))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], t) for name, t in before.items())


def test_nothing_is_synced_where_there_is_nothing_to_sync_with():
    for model, how, place in (
        (net(), "local", TWO),
        (net(), "frozen", TWO),
        (net(), "sync", ALONE),
        (net(fixed_trunk=True), "sync", TWO),
    ):
        assert not any(
            isinstance(layer, SyncedBatchNorm) for layer in norms(across_workers(model, how, place))
        )


def test_a_synced_net_predicts_as_it_did():
    image = torch.rand(2, 3, 32, 32) * 255
    plain, synced = net().eval(), across_workers(net(), "sync", TWO).eval()
    assert torch.equal(plain(image), synced(image))


def test_frozen_statistics_stay_and_scale_and_shift_learn():
    model = net(score_init="random")
    set_training(model, "frozen")
    before = {name: t.clone() for name, t in model.named_buffers()}
    model(torch.rand(2, 3, 32, 32) * 255).square().sum().backward()
    assert all(torch.equal(t, before[name]) for name, t in model.named_buffers())
    assert all(layer.weight.grad is not None for layer in norms(model))
    assert model.training
    set_training(model, "local")
    model(torch.rand(2, 3, 32, 32) * 255)
    assert not torch.equal(model.backbone.bn1_1.running_mean, before["backbone.bn1_1.running_mean"])
