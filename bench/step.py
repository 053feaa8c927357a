"""A training step and a forward pass of FCN-8s (VGG-16), ours beside wkentaro/pytorch-fcn's, in one run.

    python -m bench.step --peer CHECKOUT          # CHECKOUT: a clone of wkentaro/pytorch-fcn, for its models alone

Times are medians over rounds in which the contestants take turns, so that a machine that slows down slows all of
them; the ratios are what counts. Peak memory is that of a process of its own for each contestant. The loss is ours for
all, which is faster than the peer's own. Rates: multiply-adds of the convolutions per second, over the machine's rate
in a float32 matrix product of 2048 x 2048 measured between the rounds.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fcn.loss import pixel_cross_entropy
from fcn.model import FCN

CONTESTANTS = ("tight", "reference", "peer")
GEMM_SIDE = 2048


def build(contestant: str, peer: Path | None) -> nn.Module:
    if contestant != "peer":
        return FCN(21, 8, padding=contestant)
    assert peer is not None
    folder = peer / "torchfcn" / "models"
    spec = importlib.util.spec_from_file_location(
        "peer_models", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer_models"] = module
    spec.loader.exec_module(module)
    return module.FCN8s(21)


def trainer(model: nn.Module, image: Tensor, label: Tensor) -> Callable[[], None]:
    """Return one step of the reference's optimizer, made as each contestant's own trainer makes it."""
    model.train()
    is_ours = isinstance(model, FCN)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-14, momentum=0.99, weight_decay=5e-4, fused=is_ours or None
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pixel_cross_entropy(model(image), label).backward()
        optimizer.step()

    return step


def predictor(model: nn.Module, image: Tensor) -> Callable[[], None]:
    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(image)

    return forward


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def conv_multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of one forward pass in (transposed) convolutions, counted from the shapes they see."""
    counts: list[int] = []

    def count(layer: nn.Conv2d | nn.ConvTranspose2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        positions = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output)[0, 0].numel()
        counts.append(positions * weight.numel() * len(inputs[0]))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    predictor(model, image)()
    for handle in handles:
        handle.remove()
    return sum(counts)


def compare(models: dict[str, nn.Module], image: Tensor, label: Tensor, rounds: int) -> None:
    matrix = torch.randn(GEMM_SIDE, GEMM_SIDE)
    gemm: list[float] = []
    for what in ("forward", "train"):
        makers = {
            name: trainer(model, image, label) if what == "train" else predictor(model, image)
            for name, model in models.items()
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for number in range(rounds + 1):
            for name, work in makers.items():
                elapsed = seconds(work)
                if number:  # the first round warms up
                    times[name].append(elapsed)
            gemm.append(seconds(lambda: matrix @ matrix))
        report(what, times, models, image, statistics.median(gemm[1:]))


def report(
    what: str, times: dict[str, list[float]], models: dict[str, nn.Module], image: Tensor, gemm_s: float
) -> None:
    rate = GEMM_SIDE**3 / gemm_s
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        line = (
            f"{what:8} {name:10} median {medians[name]:.3f} s  (min {min(values):.3f}, max {max(values):.3f})"
        )
        if "peer" in medians:
            line += f"  {medians['peer'] / medians[name]:.2f}x the peer"
        if what == "forward":
            share = conv_multiply_adds(models[name], image) / medians[name] / rate
            line += f"  {share:.2f} of the GEMM rate ({2 * rate / 1e9:.0f} GFLOP/s)"
        print(line, flush=True)


def peak_memory_mib(contestant: str, arguments: argparse.Namespace) -> int:
    """Of a process that takes two training steps, above one that has imported torch and made the image."""
    command = [
        sys.executable,
        "-m",
        "bench.step",
        "--memory-of",
        contestant,
        "--threads",
        str(arguments.threads),
    ]
    command += ["--size", *map(str, arguments.size)] + (
        ["--peer", str(arguments.peer)] if arguments.peer else []
    )
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_kib() -> int:
    """The most memory this process has had so far (Linux; getrusage would count its parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a clone of wkentaro/pytorch-fcn; without it ours alone")
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    image = torch.rand(1, 3, *arguments.size) * 255
    label = torch.randint(0, 21, (1, *arguments.size))
    if arguments.memory_of:
        before = peak_kib()
        step = trainer(build(arguments.memory_of, arguments.peer), image, label)
        step()
        step()
        print((peak_kib() - before) // 1024)
        return
    names = [name for name in CONTESTANTS if name != "peer" or arguments.peer]
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, image {arguments.size[1]}x{arguments.size[0]}"
    )
    compare({name: build(name, arguments.peer) for name in names}, image, label, arguments.rounds)
    memory = {name: peak_memory_mib(name, arguments) for name in names}
    for name, mib in memory.items():
        share = f"  {mib / memory['peer']:.2f} of the peer's" if "peer" in memory else ""
        print(f"memory   {name:10} peak {mib} MiB over the start{share}")


if __name__ == "__main__":
    main()
