"""Training and inference of FCN-8s (VGG-16) on a GPU: ours in bfloat16 beside wkentaro/pytorch-fcn's in float32.

    python -m bench.gpu --peer CHECKOUT           # --batch 16, --compile; --device cpu --size 64 64 tries it out

Contestants take turns in one run, with images that are on the device already. The peer takes them one by one, as its
trainer does, and in batches. Ours: bfloat16 autocast, channels_last, the fused optimizer, with --compile through
torch.compile as well. Rates are shares of what the device does in a bfloat16 matrix product of --matrix squared in the
same run; a training step is three forward passes' multiply-adds: forward, and back to inputs and to weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.step import build, conv_multiply_adds
from fcn.loss import pixel_cross_entropy

Work = Callable[[], object]


class Contestant(NamedTuple):
    net: nn.Module
    is_ours: bool
    batch: int


def training(contestant: Contestant, image: Tensor, label: Tensor) -> Work:
    """One step: ours as pipeline.training.loop takes it."""
    optimizer = torch.optim.SGD(
        contestant.net.parameters(),
        lr=1e-14,
        momentum=0.99,
        weight_decay=5e-4,
        fused=contestant.is_ours or None,
    )
    image, label = image[: contestant.batch], label[: contestant.batch]

    def step() -> None:
        contestant.net.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=contestant.is_ours):
            score = contestant.net(image)
        pixel_cross_entropy(score.float(), label).backward()
        optimizer.step()

    return step


def inference(contestant: Contestant, image: Tensor) -> Work:
    image = image[: contestant.batch]

    def forward() -> None:
        contestant.net.eval()
        with (
            torch.inference_mode(),
            torch.autocast(image.device.type, torch.bfloat16, enabled=contestant.is_ours),
        ):
            contestant.net(image)

    return forward


def medians(works: dict[str, Work], device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds of each, in turns, after two rounds to warm up and to compile."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            synchronise(device)
            start = time.perf_counter()
            work()
            synchronise(device)
            if number > 1:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(work: Work, device: torch.device) -> float:
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a clone of wkentaro/pytorch-fcn; without it ours alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], metavar=("H", "W"))
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    image = torch.rand(arguments.batch, 3, *arguments.size, device=device) * 255
    label = torch.randint(0, 21, (arguments.batch, *arguments.size), device=device)

    ours = build("tight", None).to(device)
    multiply_adds = conv_multiply_adds(ours, image[:1])
    contestants = {"ours": Contestant(ours, True, arguments.batch)}
    if arguments.compile:
        compiled = torch.compile(build("tight", None).to(device))
        contestants["ours, compiled"] = Contestant(compiled, True, arguments.batch)  # pyright: ignore[reportArgumentType]
    if arguments.peer:
        peer = build("peer", arguments.peer).to(device)
        contestants["peer, one by one"] = Contestant(peer, False, 1)
        contestants["peer, in batches"] = Contestant(peer, False, arguments.batch)

    matrix = torch.randn(arguments.matrix, arguments.matrix, device=device, dtype=torch.bfloat16)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, images {arguments.size[1]}x{arguments.size[0]}", flush=True)
    for what, passes in (("training", 3), ("inference", 1)):
        works = {
            name: training(one, image, label) if what == "training" else inference(one, image)
            for name, one in contestants.items()
        }
        found = medians(works | {"matrix": lambda: matrix @ matrix}, device, arguments.rounds)
        rate = arguments.matrix**3 / found.pop("matrix")
        print(f"{what}; bfloat16 matrix rate {2e-12 * rate:.1f} TFLOP/s")
        speeds = {name: contestants[name].batch / seconds for name, seconds in found.items()}
        for name, speed in speeds.items():
            line = f"  {name:17} {speed:8.1f} images/s"
            if contestants[name].is_ours:
                line += f"  {passes * multiply_adds * speed / rate:.2f} of the matrix rate"
                line += "".join(f"  {speed / speeds[p]:.1f}x {p}" for p in speeds if p.startswith("peer"))
            print(f"{line}  peak {peak_gib(works[name], device):.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
