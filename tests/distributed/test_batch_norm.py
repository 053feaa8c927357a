"""That synced batch norm gives the gradients of one big batch is held in training/test_step.py, with real processes."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fcn.model import FCN
from pipeline.distributed.batch_norm import SyncedBatchNorm, across_workers, set_training
from pipeline.distributed.rank import ALONE, Place
from tests.gloo import run_in_processes

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


def norm_in_a_part(place: Place, folder: Path) -> None:
    """The first two of three processes share batch norm; the third stands by."""
    group = dist.new_group([0, 1])
    if place.rank < 2:
        model = across_workers(net(), "sync", Place(place.rank, 2, place.device, group))
        image = images(place.rank).requires_grad_()
        layer = norms(model)[0]
        layer(image).square().sum().backward()
        torch.save((image.grad, layer.running_mean, layer.running_var), folder / f"{place.rank}.pt")
    dist.barrier()


def images(rank: int) -> torch.Tensor:
    return torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(rank))


def test_batch_norm_is_that_of_the_workers_that_work_together(tmp_path):
    """Held against one process with the images of both."""
    run_in_processes(tmp_path, [3], norm_in_a_part, tmp_path)
    whole, layer = torch.cat([images(0), images(1)]).requires_grad_(), norms(net())[0]
    layer(whole).square().sum().backward()
    assert whole.grad is not None
    for rank in (0, 1):
        grad, mean, variance = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(grad, whole.grad[2 * rank : 2 * rank + 2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean, layer.running_mean)
        torch.testing.assert_close(variance, layer.running_var)
