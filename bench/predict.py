"""Time `fcn predict` of one photo, the least that it needs, and `fcn --help`.

    python -m bench.predict     # FCN-8s of the profile laptop, one photo of 500x375, from the start of the process

"bare" imports torch, builds the same net and runs it once on pixels in memory; no file is read or written.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcn.model import FCN
from pipeline.models import checkpoint

OPTIONS = {"stride": 8, "backbone": "efficientnet_lite2"}
HEIGHT, WIDTH = 375, 500
BARE = f"""
import torch
from fcn.model import FCN
with torch.inference_mode():
    FCN(**{OPTIONS}).eval()(torch.zeros(1, 3, {HEIGHT}, {WIDTH}, dtype=torch.uint8)).argmax(1)
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def prepared(folder: Path) -> tuple[Path, Path]:
    """Write a model file and a photo; return their paths."""
    torch.manual_seed(0)
    content = {
        "model": OPTIONS,
        "classes": [str(index) for index in range(21)],
        "lineage": {},
        "state_dict": dict(FCN(**OPTIONS, score_init="random").state_dict()),
    }
    checkpoint.save(folder / "fcn8s.pt", "model", content)
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    Image.fromarray(coarse).resize((WIDTH, HEIGHT)).save(folder / "photo.jpg")
    return folder / "fcn8s.pt", folder / "photo.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model, photo = prepared(Path(name))
        fcn = [sys.executable, "-m", "pipeline.cli.main"]
        commands = {
            "bare": [sys.executable, "-c", BARE],
            "predict": [*fcn, "predict", str(model), str(photo), "--output", str(Path(name) / "out")],
            "help": [*fcn, "--help"],
        }
        for command in commands.values():  # from the disk's cache and with bytecode, as the second time
            seconds(command)
        times = {what: [] for what in commands}
        for _ in range(arguments.rounds):
            for what, command in commands.items():
                times[what].append(seconds(command))
    median = {what: statistics.median(values) for what, values in times.items()}
    print(
        f"fcn predict {median['predict']:.2f} s, torch and one forward pass alone {median['bare']:.2f} s: "
        f"{median['predict'] / median['bare']:.2f} times as long; fcn --help {median['help']:.2f} s "
        f"(medians of {arguments.rounds}, {torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
