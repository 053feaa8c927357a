"""Two workers of a core each beside one worker of one core: images a second, and what the exchange of gradients costs.

    python -m bench.scaling                                  # the sample's net and MobileNetV1-0.25
    python -m bench.scaling --nets vgg16 --size 64 --batch 2 # 134 million parameters: the exchange shows
    python -m bench.scaling --compression bf16 --bucket-mb 4

The batch of a step is the same for one worker and for two, which halve it. Both are pinned to their cores and have one
thread; they take turns in one run, and the machine should have nothing else to do. Beside the measured step of two
stands what docs/scaling.md's model says of it: the step of one worker with half the batch, and the bytes sent at the
rate that the same processes reach when they send that many and do nothing else.
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
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from fcn.loss import pixel_cross_entropy
from fcn.model import FCN
from pipeline.exchange import exchanging
from pipeline.place import ALONE, Place

SAMPLE = {"backbone": "vgg16", "padding": "tight", "width": 0.25, "batch_norm": True, "fc6_kernel": 3}
NETS: dict[str, tuple[dict[str, Any], int]] = {  # FCN's arguments, and the side of an image
    "sample": (SAMPLE, 128),
    "mobilenet": ({"backbone": "mobilenet_v1", "width": 0.25}, 256),
    "vgg16": ({"backbone": "vgg16", "padding": "tight"}, 128),
}
TO_SEND = {"none": 4, "bf16": 2}  # bytes a parameter


def stepper(
    net: dict[str, Any], place: Place, size: int, batch: int, exchange: dict[str, Any]
) -> Callable[[], None]:
    """One step of training on `batch` images of this worker, drawn at random."""
    torch.manual_seed(0)
    model = FCN(21, 8, **net)
    model.train()
    trained = exchanging(model, place, start=0, **exchange)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    image, label = torch.rand(batch, 3, size, size) * 255, torch.randint(0, 21, (batch, size, size))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pixel_cross_entropy(trained(image), label).backward()
        optimizer.step()

    return step


def seconds(work: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def measure(place: Place, arguments: argparse.Namespace, name: str) -> None:
    net, size = NETS[name]
    size, batch = arguments.size or size, arguments.batch
    exchange = {"compression": arguments.compression, "bucket_mb": arguments.bucket_mb}
    exchange |= {"powersgd_rank": 2, "powersgd_after": 2}
    together = stepper(net, place, size, batch // 2, exchange)
    whole, half = (stepper(net, ALONE, size, part, exchange) for part in (batch, batch // 2))
    parameters = sum(p.numel() for p in FCN(21, 8, **net).parameters())
    sent: Tensor | None = None
    if per := TO_SEND.get(arguments.compression):
        sent = torch.zeros(parameters, dtype=torch.float32 if per == 4 else torch.bfloat16)
    times: dict[str, list[float]] = {what: [] for what in ("one", "half", "two", "send")}
    for number in range(arguments.rounds + 1):
        found = {}
        dist.barrier()
        if place.is_first:  # the other core is idle meanwhile
            found["one"] = seconds(whole, arguments.steps)
            found["half"] = seconds(half, arguments.steps)
        dist.barrier()
        found["two"] = seconds(together, arguments.steps)
        if sent is not None:
            dist.barrier()
            found["send"] = seconds(lambda: dist.all_reduce(sent), arguments.steps)
        if number:  # the first round warms up
            for what, value in found.items():
                times[what].append(value)
    if place.is_first:
        report(name, arguments, parameters, times)


def report(name: str, arguments: argparse.Namespace, parameters: int, times: dict[str, list[float]]) -> None:
    one, half, two = (statistics.median(times[what]) for what in ("one", "half", "two"))
    line = f"{name:10} {parameters / 1e6:6.2f}M  1 worker {one * 1e3:7.0f} ms  2 workers {two * 1e3:7.0f} ms a step"
    line += f"  {one / two:.2f}x the images/s"
    if times["send"]:
        send = statistics.median(times["send"])
        mb = parameters * TO_SEND[arguments.compression] / 1e6
        line += f"; model: {half * 1e3:.0f} ms + {mb:.0f} MB in {send * 1e3:.0f} ms = {(half + send) * 1e3:.0f} ms"
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
        measure(Place(rank, 2, torch.device("cpu")), arguments, name)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["sample", "mobilenet"])
    parser.add_argument("--compression", choices=("none", "bf16", "powersgd"), default="none")
    parser.add_argument("--bucket-mb", type=int, default=25)
    parser.add_argument("--size", type=int, help="side of an image (default: the net's own)")
    parser.add_argument("--batch", type=int, default=8, help="images a step, over all workers")
    parser.add_argument("--steps", type=int, default=4, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (port, arguments), nprocs=2)


if __name__ == "__main__":
    main()
