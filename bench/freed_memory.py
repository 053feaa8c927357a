"""Compare a training step on a CPU where glibc keeps freed memory with one where it returns it to the system.

    python -m bench.freed_memory

Contestants, taking turns in every round: `default`, glibc's own settings, and `kept`, pipeline.cluster.nodes.MALLOC.
Each is two processes at once, as two workers of a machine are, which run on a thread each. Photos have one size, or
another in every step, as without crops. Printed are medians of the seconds of a step, and the peak memory of a process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import torch

from fcn.loss import mean_over_pixels, weighted_sum
from fcn.model import FCN
from pipeline.cluster import nodes

SIZES = [(375, 500), (500, 375), (333, 500), (500, 333), (350, 500), (375, 480), (281, 500), (500, 400)]


class Case(NamedTuple):
    """A net and its batch; sizes: (height, width) in turn."""

    backbone: str
    num_images: int
    sizes: list[tuple[int, int]]


CASES = {
    "EfficientNet-Lite2, 320x320": Case("efficientnet_lite2", 4, [(320, 320)]),
    "EfficientNet-Lite2, eight sizes": Case("efficientnet_lite2", 2, SIZES),
    "MobileNetV1, eight sizes": Case("mobilenet_v1", 2, SIZES),
    "ResNet-50, eight sizes": Case("resnet50", 1, SIZES),
    "VGG-16, eight sizes": Case("vgg16", 1, SIZES),
}


def steps(case: Case, num: int) -> None:
    """Train for `num` steps after as many to warm up; print seconds of a step and peak memory in GB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = FCN(21, 32, case.backbone).train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-6)
    times = []
    for index in range(2 * num):
        height, width = case.sizes[index % len(case.sizes)]
        photos = torch.randint(0, 256, (case.num_images, 3, height, width), dtype=torch.uint8)
        labels = torch.randint(0, 21, (case.num_images, height, width))
        start = time.perf_counter()
        optimizer.zero_grad()
        losses = weighted_sum(net(photos), labels, {"cross_entropy": 1.0})
        mean_over_pixels(losses, torch.tensor(float(labels.numel()))).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([statistics.fmean(times[num:]), peak_gb]))


def pair(name: str, num: int, settings: dict[str, str]) -> tuple[float, float]:
    """Return the mean seconds of a step of two processes at once, and the larger peak memory."""
    environment = {key: value for key, value in os.environ.items() if key not in nodes.MALLOC} | settings
    command = [sys.executable, "-m", "bench.freed_memory", "--case", name, "--steps", str(num)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    results = [json.loads(process.communicate()[0]) for process in both]
    return statistics.fmean(seconds for seconds, _ in results), max(peak for _, peak in results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=list(CASES), help="beginnings of their names")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        worker = threading.Thread(target=steps, args=(CASES[arguments.case], arguments.steps))
        worker.start()
        worker.join()
        return
    for name in (name for name in CASES if name.startswith(tuple(arguments.nets))):
        rounds = [
            [pair(name, arguments.steps, settings) for settings in ({}, nodes.MALLOC)]
            for _ in range(arguments.rounds)
        ]
        (default_s, default_gb), (kept_s, kept_gb) = (
            map(statistics.median, zip(*contestant, strict=True)) for contestant in zip(*rounds, strict=True)
        )
        print(
            f"{name:32} {default_s:.2f} to {kept_s:.2f} s, {default_s / kept_s:.2f}x; "
            f"{default_gb:.2f} to {kept_gb:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
