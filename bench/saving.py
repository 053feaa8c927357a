"""Compare training intervals in which a checkpoint is written with intervals without one.

python -m bench.saving                   # the sample's net and interval
python -m bench.saving --in-loop         # written by the training thread itself
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from fcn.loss import mean_pixel_cross_entropy
from fcn.model import FCN
from pipeline.models.saver import Saver

SAMPLE = {"padding": "tight", "width": 0.25, "batch_norm": True, "fc6_kernel": 3, "pixels": "torchvision"}


def interval(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Run training steps of one worker of the sample profile: 4 images of 128x128."""
    image, label = torch.rand(4, 3, 128, 128) * 255, torch.randint(0, 5, (4, 128, 128))
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        mean_pixel_cross_entropy(model(image), label).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50, help="of an interval; the sample's checkpoint_every")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-loop", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = FCN(5, 32, **SAMPLE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    interval(model, optimizer, 3)
    times: dict[bool, list[float]] = {True: [], False: []}
    held: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder)) as saver:
        for number in range(2 * arguments.rounds):
            is_saving = number % 2 == 1
            start = time.perf_counter()
            if is_saving:
                content = {"step": number, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                saver.save(number, content)
                if arguments.in_loop:
                    saver.wait()
                held.append(time.perf_counter() - start)
            interval(model, optimizer, arguments.steps)
            times[is_saving].append(time.perf_counter() - start)
            saver.wait()
        size = max(path.stat().st_size for path in Path(folder).iterdir())
    with_, without = (statistics.median(times[is_saving]) for is_saving in (True, False))
    print(
        f"checkpoint of {size / 1e6:.0f} MB every {arguments.steps} steps of {without / arguments.steps * 1e3:.0f} ms: "
        f"the loop stood still {statistics.median(held):.3f} s, {statistics.median(held) / with_:.1%} of the interval; "
        f"interval {with_ / without - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
