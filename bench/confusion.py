"""Time the confusion matrix: ours, and numpy's bincount as in the reference's score.py.

    python -m bench.confusion [--device cuda]

Both start from a prediction and a label on the device, as evaluation does. numpy's way copies them to the host first,
like score.py; on a GPU that is most of its time. Medians; the two take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcn import IGNORE_LABEL
from fcn.metrics import ConfusionMatrix

NUM_CLASSES = 21
SHAPE = (16, 375, 500)


def bincount(prediction: Tensor, label: Tensor) -> NDArray[np.int64]:
    """Return the histogram of score.py, written from its description (fast_hist)."""
    truth, predicted = label.cpu().numpy().ravel(), prediction.cpu().numpy().ravel()
    valid = (truth >= 0) & (truth < NUM_CLASSES)
    pairs = NUM_CLASSES * truth[valid].astype(int) + predicted[valid]
    return np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    # Objects are patches, not noise, and 5% of the pixels are void, as in VOC
    label = (
        torch.randint(0, NUM_CLASSES, (SHAPE[0], 25, 25)).repeat_interleave(15, 1).repeat_interleave(20, 2)
    )
    label[torch.rand(SHAPE) < 0.05] = IGNORE_LABEL
    prediction = torch.where(torch.rand(SHAPE) < 0.9, label % NUM_CLASSES, 0)
    label, prediction = label.to(device, torch.uint8), prediction.to(device)
    confusion = ConfusionMatrix(NUM_CLASSES, device)
    contestants = {
        "ours": lambda: confusion.update(prediction, label),
        "numpy": lambda: bincount(prediction, label),
    }
    assert (
        ConfusionMatrix(NUM_CLASSES, device).update(prediction, label).hist.cpu().numpy()
        == bincount(prediction, label)
    ).all()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, work in contestants.items():
            times[name].append(seconds(work, device))
    ours, numpy = (statistics.median(times[name]) for name in ("ours", "numpy"))
    pixels = label.numel()
    print(
        f"{device}, {pixels} pixels: ours {1e3 * ours:.2f} ms, numpy {1e3 * numpy:.2f} ms, {numpy / ours:.1f}x"
    )


if __name__ == "__main__":
    main()
