"""Gradients averaged by real processes over gloo, whole and compressed."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed.gradients import average_gradients
from pipeline.distributed.rank import SINGLE, Rank
from tests.gloo import run_in_processes

STEPS = 6


def averaged(model: nn.Module, rank: Rank, compression: str = "none", bucket_mb: int = 25) -> nn.Module:
    return average_gradients(model, rank, compression=compression, bucket_mb=bucket_mb)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 1))


def share(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(16, 40, generator=torch.Generator().manual_seed(rank))
    return image, image[:, :3].sum(1, keepdim=True)


def trained(model: nn.Module, rank: int) -> tuple[list[float], torch.Tensor]:
    """The losses of STEPS steps, and the last step's gradients."""
    image, truth = share(rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(image) - truth).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def warnings_of_a_depthwise_kernel(rank: Rank) -> list[str]:
    model = averaged(nn.Conv2d(8, 8, 3, groups=8, bias=False), rank)
    image = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings(record=True) as caught:
        model(image).sum().backward()
    return [str(warning.message) for warning in caught]


def work(rank: Rank, folder: Path) -> None:
    if rank.world_size == 2:
        results = {
            "torch": trained(DistributedDataParallel(net()), rank.number),
            "none": trained(averaged(net(), rank), rank.number),
            "bf16": trained(averaged(net(), rank, "bf16"), rank.number),
            "small buckets": trained(averaged(net(), rank, bucket_mb=1), rank.number),
        }
        torch.save(results, folder / f"{rank.number}.pt")
        torch.save(warnings_of_a_depthwise_kernel(rank), folder / f"warnings{rank.number}.pt")
        return
    group = dist.new_group([0, 1])  # the first two of three processes work together
    if rank.number < 2:
        part = Rank(rank.number, 2, rank.device, group)
        total = part.all_reduce(torch.tensor(rank.number + 1.0))
        torch.save((total, trained(averaged(net(), part), rank.number)), folder / f"part{rank.number}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    run_in_processes(folder, [2, 3], work, folder)
    return folder


def of_rank(folder: Path, rank: int) -> dict[str, tuple[list[float], torch.Tensor]]:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", ["none", "small buckets"])
@pytest.mark.parametrize("rank", [0, 1])
def test_without_compression_gradients_are_torchs_own_bit_for_bit(folder, rank, name):
    results = of_rank(folder, rank)
    assert results[name][0] == results["torch"][0]
    assert torch.equal(results[name][1], results["torch"][1])


def test_the_gradient_is_the_mean_over_workers(folder):
    """Expected values come from one process with both workers' images."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for rank in (0, 1):
            image, truth = share(rank)
            ((model(image) - truth).square().mean() / 2).backward()
        optimizer.step()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(of_rank(folder, 0)["none"][1], expected)


def test_bf16_gradients_are_equal_on_every_worker_and_near_the_exact_ones(folder):
    first, second = of_rank(folder, 0), of_rank(folder, 1)
    assert torch.equal(first["bf16"][1], second["bf16"][1])
    assert not torch.equal(first["bf16"][1], first["torch"][1])
    assert first["bf16"][0][-1] == pytest.approx(first["torch"][0][-1], rel=0.3)


def test_a_subgroup_trains_without_the_other_processes(folder):
    for rank in (0, 1):
        total, (losses, _) = torch.load(folder / f"part{rank}.pt", weights_only=True)
        assert total == 3
        assert losses == of_rank(folder, rank)["torch"][0]


def test_a_depthwise_kernel_trains_without_a_warning_about_strides(folder):
    assert [torch.load(folder / f"warnings{rank}.pt") for rank in (0, 1)] == [[], []]


def test_a_single_worker_needs_no_process_group():
    model, value = net(), torch.tensor([1.0, 2.0])
    assert averaged(model, SINGLE) is model
    assert SINGLE.all_reduce(value) is value
    assert (SINGLE.agree(7), SINGLE.gather("a"), SINGLE.is_first) == (7, ["a"], True)
