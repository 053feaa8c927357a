"""Numbers averaged by real processes through memory of their machine."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed import meeting
from pipeline.distributed import shared_memory as module
from pipeline.distributed.gradients import exchanging
from pipeline.distributed.rank import Place
from pipeline.distributed.shared_memory import SharedMemory, shared_memory
from tests.distributed.test_gradients import PLAIN, gradients, losses, model
from tests.gloo import run_in_processes

if sys.platform != "linux":
    pytest.skip("only Linux has memory without a name to share", allow_module_level=True)

WORLDS = (2, 3)
SMALL = 64  # bytes of a chunk, so that many are needed
LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 100, 1000)
ROUNDS = 300


def value(rank: int, length: int, dtype: torch.dtype, number: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * number + rank)
    return torch.randn(length, generator=generator, dtype=dtype)


def refused(within: ModuleType, name: str, fails_on: int, place: Place) -> bool:
    """Whether all do without memory if one worker's `name` in a module fails."""
    original = getattr(within, name)
    if place.rank == fails_on:
        setattr(within, name, lambda *_: None)
    try:
        return shared_memory(place) is None
    finally:
        setattr(within, name, original)


def held_by_this_process() -> tuple[Tensor, Tensor]:
    """How many files are open, and how many memories without a name are there."""
    memories = Path("/proc/self/maps").read_text().count("memfd:gradients")
    return torch.tensor(len(os.listdir("/proc/self/fd"))), torch.tensor(memories)


def work(place: Place, folder: Path) -> None:
    whole = shared_memory(place)
    assert whole is not None
    long = value(place.rank, module.CHUNK // 2, torch.float32)  # two chunks of eight bytes a number
    whole.average(long)
    found = {"long": long}

    usual, module.CHUNK = module.CHUNK, SMALL
    memory = shared_memory(place)
    module.CHUNK = usual
    assert memory is not None
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for length in LENGTHS:
            found[f"{length} {dtype}"] = averaged = value(place.rank, length, dtype)
            memory.average(averaged)
    for number in range(ROUNDS):
        found[f"round {number}"] = averaged = value(place.rank, 40, torch.float64, number)
        memory.average(averaged)

    opened, held = held_by_this_process()
    further = shared_memory(place)
    found["held more"] = held_by_this_process()[1] - held
    del further
    cases = [(module, "_machine", 1), (module, "_make", 0), (module, "_mapped", 0), (module, "_mapped", 1)]
    cases += [(meeting, "_opened", 0), (meeting, "_opened", 1)]
    found["refused"] = torch.tensor([refused(*case, place) for case in cases])
    now_opened, now_held = held_by_this_process()
    found["left"] = torch.stack([now_opened - opened, now_held - held])
    torch.save(found, folder / f"{place.world}-{place.rank}.pt")


def work_of_a_model(place: Place, folder: Path) -> None:
    """What goes through memory and through gloo while a model trains; and what it learns on two machines."""
    counts = {"memory": 0, "gloo": 0}
    average, all_reduce = SharedMemory.average, dist.all_reduce

    def averaging(memory: SharedMemory, value: Tensor) -> None:
        counts["memory"] += value.numel()
        average(memory, value)

    def reducing(tensor: Tensor, *arguments: object, **named: object) -> object:
        counts["gloo"] += tensor.numel()
        return all_reduce(tensor, *arguments, **named)

    together = exchanging(model(), place, start=0, **PLAIN)
    SharedMemory.average, dist.all_reduce = averaging, reducing
    found = {"losses": losses(together, place.rank), "gradients": gradients(together)}
    SharedMemory.average, dist.all_reduce = average, all_reduce
    found |= {f"through {way}": torch.tensor(count) for way, count in counts.items()}
    module._machine = lambda: f"machine {place.rank}"
    apart = exchanging(model(), place, start=0, **PLAIN)
    found |= {"losses apart": losses(apart, place.rank), "gradients apart": gradients(apart)}
    torch.save(found, folder / f"model-{place.rank}.pt")


def work_all(place: Place, folder: Path) -> None:
    work(place, folder)
    if place.world == 2:
        work_of_a_model(place, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    run_in_processes(folder, [3, 2], work_all, folder)
    return folder


def of_rank(folder: Path, name: str) -> dict[str, Tensor]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("world", WORLDS)
def test_every_worker_has_the_same_mean_whatever_the_length(found, world):
    results = [of_rank(found, f"{world}-{rank}") for rank in range(world)]
    cases = {
        f"{length} {dtype}": (length, dtype, 0)
        for length in LENGTHS
        for dtype in (torch.float32, torch.float64)
    }
    cases |= {"long": (module.CHUNK // 2, torch.float32, 0)}
    cases |= {f"round {number}": (40, torch.float64, number) for number in range(ROUNDS)}
    for name, (length, dtype, number) in cases.items():
        mean = torch.stack([value(rank, length, dtype, number) for rank in range(world)]).double().mean(0)
        torch.testing.assert_close(results[0][name], mean.to(dtype))
        assert all(torch.equal(results[0][name], other[name]) for other in results[1:]), name
    for length in LENGTHS:
        name = f"{length} {torch.bfloat16}"
        mean = torch.stack([value(rank, length, torch.bfloat16) for rank in range(world)]).double().mean(0)
        torch.testing.assert_close(results[0][name].double(), mean, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_of_the_memory_is_left_when_nobody_uses_it_any_more(found, world):
    for rank in range(world):
        results = of_rank(found, f"{world}-{rank}")
        assert results["held more"] == 1
        assert results["left"].tolist() == [0, 0]


@pytest.mark.parametrize("world", WORLDS)
def test_all_do_without_it_if_one_is_elsewhere_or_cannot_make_or_open_it(found, world):
    for rank in range(world):
        assert of_rank(found, f"{world}-{rank}")["refused"].all()


def test_a_models_gradient_goes_through_memory_and_comes_out_as_through_the_network(found):
    for rank in (0, 1):
        results = of_rank(found, f"model-{rank}")
        assert results["through memory"] == len(results["losses"]) * results["gradients"].numel()
        assert results["through gloo"] == 0
        assert results["losses"] == results["losses apart"]
        assert torch.equal(results["gradients"], results["gradients apart"])


def test_a_gpu_shares_no_memory():
    assert shared_memory(Place(0, 2, torch.device("cuda"))) is None
