"""Time a classifier over a grid of crops: one fully convolutional pass, crops one by one, and crops in batches.

    python -m bench.dense          # --device cuda, --network caffenet, --crops 0 --batch 100

Caffe's AlexNet takes crops of 227x227 and VGG-16 of 224x224, both in steps of 32 out of a 500x500 image. That is the
paper's grid of 10x10, and 9x9. Caffe's poolings round up, so AlexNet's last row and column reach 15 pixels past the
image; those crops are moved inside. Weights are random, since time does not depend on them. Times are medians over
rounds in which the three take turns, so a machine that slows down slows all of them; compare the factors. A round
times --crops of the grid's crops (0: all) and scales up to all of them; the dense pass is timed whole.
The paper (section 3.1) states 1.2 ms for one crop and 22 ms for the grid of 10x10, "more than 5 times faster".
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models

from fcn.backbones.alexnet import CaffeNetClassifier
from fcn.surgery import convolutionalize

IMAGE_SIDE, STEP = 500, 32
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "caffenet": (CaffeNetClassifier, 227),
    "vgg16": (lambda: models.vgg16(weights=None, init_weights=False), 224),
}
PAPER_FACTOR = 100 * 1.2 / 22  # of AlexNet, one crop after the other


class Medians(NamedTuple):
    """Seconds for the whole grid."""

    dense: float
    one_by_one: float
    in_batches: float


def crops_of(image: Tensor, crop: int, grid: int) -> list[Tensor]:
    """Return every crop of the grid, copied, so that cutting them out is not timed."""
    starts = [min(STEP * i, IMAGE_SIDE - crop) for i in range(grid)]
    corners = [(y, x) for y in starts for x in starts]
    return [image[:, :, y : y + crop, x : x + crop].contiguous() for y, x in corners]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batched(crops: list[Tensor], size: int) -> list[Tensor]:
    return [torch.cat(crops[i : i + size]) for i in range(0, len(crops), size)]


@torch.inference_mode()
def measure(network: str, arguments: argparse.Namespace) -> Medians:
    make, crop = NETWORKS[network]
    device = torch.device(arguments.device)
    classifier = make().eval().to(device)
    net, image = convolutionalize(classifier), torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, device=device)
    grid = net(image).shape[-1]
    crops = crops_of(image, crop, grid)
    torch.testing.assert_close(net(crops[-1]).flatten(1), classifier(crops[-1]), atol=1e-3, rtol=1e-3)
    timed = spread(crops, arguments.crops)
    batches = batched(timed, arguments.batch)
    contestants: dict[str, tuple[Callable[[], object], float]] = {
        "dense": (lambda: net(image), 1.0),
        "one_by_one": (lambda: [classifier(crop) for crop in timed], len(crops) / len(timed)),
        "in_batches": (lambda: [classifier(batch) for batch in batches], len(crops) / len(timed)),
    }
    print(
        f"{network}: {grid}x{grid} crops of {crop}x{crop}, {len(timed)} of them timed, "
        f"batches of {len(batches[0])}",
        flush=True,
    )
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(arguments.rounds + 1):
        for name, (work, scale) in contestants.items():
            elapsed = scale * seconds(work, device)
            if number:  # the first round warms up
                times[name].append(elapsed)
    return report(times, len(crops))


def spread(crops: list[Tensor], num: int) -> list[Tensor]:
    """Return `num` of the crops, evenly spread; all of them for 0."""
    if not 0 < num < len(crops):
        return crops
    return [crops[i * len(crops) // num] for i in range(num)]


def report(times: dict[str, list[float]], num_crops: int) -> Medians:
    medians = Medians(**{name: statistics.median(values) for name, values in times.items()})
    for name, values in times.items():
        median = statistics.median(values)
        line = f"  {name:10} median {1e3 * median:9.1f} ms  (min {1e3 * min(values):.1f}, max {1e3 * max(values):.1f})"
        if name == "one_by_one":
            line += f"  {1e3 * median / num_crops:.1f} ms a crop"
        if name != "dense":
            line += f"  dense is {median / medians.dense:.1f}x as fast"
        print(line, flush=True)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=25, help="crops in a batch")
    parser.add_argument("--crops", type=int, default=25, help="crops timed a round; 0: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads")
    for network in arguments.network or NETWORKS:
        measure(network, arguments)
    print(f"the paper's AlexNet: one crop 1.2 ms, grid 22 ms: {PAPER_FACTOR:.1f}x, 'more than 5 times'")


if __name__ == "__main__":
    main()
