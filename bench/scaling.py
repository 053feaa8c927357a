"""Two workers of a core each beside one worker of one core: images a second, and the cost of averaging gradients.

    python -m bench.scaling                                  # the sample's net and MobileNetV1-0.25
    python -m bench.scaling --nets vgg16 --size 64 --batch 2 # 134 million parameters: the all-reduce shows
    python -m bench.scaling --compression bf16 --bucket-mb 4

The batch of a step is the same for one worker and for two, which halve it. Both are pinned to their cores with one
thread each. They take turns in one run, each after a warm-up step; the machine should be idle. Beside the measured step
of two workers stands the model of docs/scaling.md: the step of one worker with half the batch, plus an all-reduce of as
many numbers as the gradient has, by the same processes when they do nothing else.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from fcn.loss import pixel_cross_entropy
from fcn.model import FCN
from pipeline.distributed.gradients import average_gradients
from pipeline.distributed.rank import Rank

SAMPLE = {"backbone": "vgg16", "padding": "tight", "width": 0.25, "batch_norm": True, "fc6_kernel": 3}
NETS: dict[str, tuple[dict[str, Any], int]] = {  # FCN's arguments, and the side of an image
    "sample": (SAMPLE, 128),
    "mobilenet": ({"backbone": "mobilenet_v1", "width": 0.25}, 256),
    "vgg16": ({"backbone": "vgg16", "padding": "tight"}, 128),
}


def stepper(
    net: dict[str, Any], size: int, batch: int, averaged: Callable[[nn.Module], nn.Module]
) -> Callable[[], None]:
    """One step of training on `batch` images of this worker, drawn at random."""
    torch.manual_seed(0)
    model = FCN(21, 8, **net)
    model.train()
    trained = averaged(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9, fused=True)
    image, label = torch.rand(batch, 3, size, size) * 255, torch.randint(0, 21, (batch, size, size))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pixel_cross_entropy(trained(image), label).backward()
        optimizer.step()

    return step


def seconds(work: Callable[[], object], times: int) -> float:
    """Of one, after one to warm up."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def measure(rank: Rank, arguments: argparse.Namespace, name: str) -> None:
    net, size = NETS[name]
    size, batch = arguments.size or size, arguments.batch
    exchange = {"compression": arguments.compression, "bucket_mb": arguments.bucket_mb}
    parameters = sum(p.numel() for p in FCN(21, 8, **net).parameters())
    works: dict[str, Callable[[], object]] = {
        "one": stepper(net, size, batch, lambda model: model),
        "half": stepper(net, size, batch // 2, lambda model: model),
        "two": stepper(net, size, batch // 2, lambda model: average_gradients(model, rank, **exchange)),
        "send": sender(arguments.compression, parameters),
    }
    times: dict[str, list[float]] = {what: [] for what in works}
    for number in range(arguments.rounds + 1):
        for what, work in works.items():
            dist.barrier()
            if rank.is_first or what not in ("one", "half"):  # the other core is idle meanwhile
                taken = seconds(work, arguments.steps)
                if number:  # the first round warms up
                    times[what].append(taken)
    if rank.is_first:
        report(name, parameters, times)


def sender(compression: str, parameters: int) -> Callable[[], object]:
    """All-reduces as many numbers as the gradient has."""
    numbers = torch.zeros(parameters, dtype=torch.bfloat16 if compression == "bf16" else torch.float32)
    return lambda: dist.all_reduce(numbers)


def report(name: str, parameters: int, times: dict[str, list[float]]) -> None:
    median = {what: statistics.median(found) for what, found in times.items()}
    one, half, two, send = (median[what] for what in ("one", "half", "two", "send"))
    line = f"{name:10} {parameters / 1e6:6.2f}M  1 worker {one * 1e3:5.0f} ms a step"
    line += f"  2 workers {two * 1e3:5.0f} ms, {one / two:.2f}x the images/s"
    line += f"; model: {half * 1e3:.0f} + {send * 1e3:.0f} = {(half + send) * 1e3:.0f} ms"
    line += f" ({(half + send) / two:.2f} of measured)"
    print(line, flush=True)


def process(rank: int, port: int, arguments: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name in arguments.nets:
        measure(Rank(rank, 2, torch.device("cpu")), arguments, name)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["sample", "mobilenet"])
    parser.add_argument("--compression", choices=("none", "bf16"), default="none")
    parser.add_argument("--bucket-mb", type=int, default=25)
    parser.add_argument("--size", type=int, help="side of an image (default: the net's own)")
    parser.add_argument("--batch", type=int, default=8, help="images a step, over all workers")
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="in a turn: few, and a core that idled before is not up to speed",
    )
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (port, arguments), nprocs=2)


if __name__ == "__main__":
    main()
