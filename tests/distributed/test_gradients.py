"""Gradients averaged by real processes over gloo, whole and compressed."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed.gradients import exchanging
from pipeline.distributed.rank import ALONE, Place
from tests.gloo import run_in_processes

PLAIN = {"compression": "none", "bucket_mb": 25, "powersgd_rank": 2, "powersgd_after": 3}
STEPS = 6


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 1))


def share(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    image = torch.randn(16, 40, generator=generator)
    return image, image[:, :3].sum(1, keepdim=True)


def losses(trained: nn.Module, rank: int) -> list[float]:
    """Of STEPS steps; leaves the last one's gradients."""
    image, truth = share(rank)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (trained(image) - truth).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def gradients(trained: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])


def warned(place: Place) -> list[str]:
    """What torch remarks while a depthwise kernel is trained; it does so once in a process."""
    trained = exchanging(nn.Conv2d(8, 8, 3, groups=8, bias=False), place, start=0, **PLAIN)
    image = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings(record=True) as caught:
        trained(image).sum().backward()
    return [str(warning.message) for warning in caught]


def work(place: Place, folder: Path) -> None:
    found = {}
    plain = DistributedDataParallel(model())
    found["torch"] = losses(plain, place.rank), gradients(plain)
    for name, start in (("none", 0), ("bf16", 0), ("powersgd", 0), ("powersgd", 10)):
        trained = exchanging(model(), place, start=start, **(PLAIN | {"compression": name}))
        found[f"{name} from {start}"] = losses(trained, place.rank), gradients(trained)
    small = exchanging(model(), place, start=0, **(PLAIN | {"bucket_mb": 1}))
    found["small buckets"] = losses(small, place.rank), gradients(small)
    torch.save(found, folder / f"{place.rank}.pt")
    torch.save(warned(place), folder / f"warned{place.rank}.pt")


def work_in_a_part(place: Place, folder: Path) -> None:
    """The first two of three processes work together."""
    group = dist.new_group([0, 1])
    if place.rank < 2:
        part = Place(place.rank, 2, place.device, group)
        torch.save(
            (
                part.total(torch.tensor(place.rank + 1.0)),
                losses(exchanging(model(), part, start=0, **PLAIN), place.rank),
            ),
            folder / f"part{place.rank}.pt",
        )
    dist.barrier()


def work_all(place: Place, folder: Path) -> None:
    (work if place.world == 2 else work_in_a_part)(place, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exchange")
    run_in_processes(folder, [2, 3], work_all, folder)
    return folder


def of_rank(folder: Path, rank: int) -> dict[str, tuple[list[float], torch.Tensor]]:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def test_without_compression_it_is_torchs_own_bit_for_bit(found):
    for rank in (0, 1):
        results = of_rank(found, rank)
        for name in ("none from 0", "small buckets"):
            assert results[name][0] == results["torch"][0]
            assert torch.equal(results[name][1], results["torch"][1])


def test_a_depthwise_kernel_is_trained_without_a_remark_on_its_strides(found):
    for rank in (0, 1):
        assert torch.load(found / f"warned{rank}.pt") == []


def test_the_gradient_is_the_mean_of_the_workers(found):
    """Worked out in one process, on both workers' images."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for rank in (0, 1):
            image, truth = share(rank)
            ((net(image) - truth).square().mean() / 2).backward()
        optimizer.step()
    torch.testing.assert_close(of_rank(found, 0)["none from 0"][1], gradients(net))


@pytest.mark.parametrize("name", ["bf16 from 0", "powersgd from 0"])
def test_compressed_gradients_are_the_same_on_every_worker_near_the_true_ones_and_not_equal(found, name):
    first, second = of_rank(found, 0), of_rank(found, 1)
    assert torch.equal(first[name][1], second[name][1])
    assert not torch.equal(first[name][1], first["torch"][1])
    assert first[name][0][-1] < 0.8 * first[name][0][0]  # it learns
    assert first[name][0][-1] == pytest.approx(first["torch"][0][-1], rel=0.3)


def test_powersgd_begins_after_the_steps_asked_for_and_at_once_where_those_are_behind(found):
    results = of_rank(found, 0)
    exact, late, early = (results[name][0] for name in ("torch", "powersgd from 0", "powersgd from 10"))
    assert late[:4] == pytest.approx(
        exact[:4], rel=1e-6
    )  # three exact steps; what the fourth sends shows in the fifth
    assert late[4] != pytest.approx(exact[4], rel=1e-6)
    assert early[3] != pytest.approx(exact[3], rel=1e-6)  # after two that DDP needs for itself


def test_a_part_of_the_processes_trains_without_the_others(found):
    for rank in (0, 1):
        total, part = torch.load(found / f"part{rank}.pt", weights_only=True)
        assert total == 3
        assert part == of_rank(found, rank)["torch"][0]


def test_one_worker_alone_exchanges_nothing():
    net = model()
    assert exchanging(net, ALONE, start=0, **PLAIN) is net
