"""Compare scoring a split with the bare forward passes on the same images.

    python -m bench.evaluation FOLDER          # with JPEGImages/ and SegmentationClass/, such as VOCdevkit/VOC2012
    python -m bench.evaluation FOLDER --backbone mobilenet_v1 --width 0.25 --images 100

Contestants, taking turns in every round, on the same photos of 500 x 375:
    score    as the evaluate stage: read, check, decode, run the net, count each image, whole and along borders
    bare     the same net on the same images, decoded and in memory; its scores are not used

Also printed: the time of `score` over the part of it spent in the net. It is the better figure where other work makes
rounds differ, but it does not show the cores that reading ahead takes from the net.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.loader import SIZE, find_pairs, write
from fcn.model import FCN
from pipeline.distributed.rank import Rank
from pipeline.evaluation import scoring
from pipeline.models.predictor import Predictor
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards

BORDER_WIDTH = 5  # the profiles' default


def net(arguments: argparse.Namespace, device: torch.device) -> FCN:
    options = {} if arguments.width is None else {"width": arguments.width}
    padding = "tight" if arguments.backbone in ("vgg16", "alexnet", "caffenet") else "reference"
    return FCN(21, 8, arguments.backbone, padding=padding, **options).eval().to(device)


@torch.inference_mode()
def bare(model: FCN, images: list[torch.Tensor]) -> None:
    for image in images:
        model(image)


class Stopwatch:
    """Sum the seconds of a net's forward passes."""

    def __init__(self, model: FCN):
        self.seconds, self._start = 0.0, 0.0
        model.register_forward_pre_hook(lambda *_: self._begin())
        model.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._start = now()

    def _end(self) -> None:
        self.seconds += now() - self._start


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def contestants(model: FCN, shards: Shards, device: torch.device) -> dict[str, Callable[[], object]]:
    samples = Dataset(shards)
    images = [samples[index].image.to(device) for index in range(len(shards))]
    predictor, rank = Predictor(model, shards.classes, device), Rank(0, 1, device)
    return {
        "score": lambda: scoring.score_split(predictor, shards, rank, BORDER_WIDTH),
        "bare": lambda: bare(model, images),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--width", type=float, help="of a backbone that takes it")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        pairs = find_pairs(arguments.folder, arguments.images)
        shards = write(pairs, Path(scratch, "val"))
        model = net(arguments, device)
        work, watch = contestants(model, shards, device), Stopwatch(model)
        times: dict[str, list[float]] = {name: [] for name in work}
        inside = []
        for number in range(arguments.rounds + 1):
            for name, contestant in work.items():
                watch.seconds, start = 0.0, now()
                contestant()
                elapsed = now() - start
                if number:  # the first round warms up
                    times[name].append(elapsed)
                    if name == "score":
                        inside.append(elapsed / watch.seconds)
    ratios = [score / bare for score, bare in zip(times["score"], times["bare"], strict=True)]
    each = {name: 1e3 * statistics.median(values) / len(pairs) for name, values in times.items()}
    width = "" if arguments.width is None else f" of width {arguments.width}"
    print(
        f"FCN-8s, {arguments.backbone}{width}, {len(pairs)} images of {SIZE[0]}x{SIZE[1]}, {arguments.device}, "
        f"{torch.get_num_threads()} threads: scored {each['score']:.1f} ms an image, bare {each['bare']:.1f}; ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {arguments.rounds} rounds); "
        f"from within {statistics.median(inside):.3f} ({min(inside):.3f} to {max(inside):.3f})"
    )


if __name__ == "__main__":
    main()
