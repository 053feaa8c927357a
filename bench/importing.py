"""Compare `fcn import` of photos with palette masks with a bare loop that decodes the same files, in photos a second.

    TMPDIR=/dev/shm python -m bench.importing VOC2012    # a folder with JPEGImages/ and SegmentationClass/

Contestants, taking turns in every round, each a process of its own whose start counts:
    bare     each photo and each mask read and decoded by Pillow; nothing written
    one      fcn import --workers 1: the same, plus checking, counting, hashing, copying and splitting
    two      fcn import --workers 2
All take `--photos` files, which are those of FOLDER under several names, with the lists of train and val. Files are
written to TMPDIR: on ext4, making a file takes up to 0.6 ms for some minutes after thousands were deleted, more than
anything that is measured here. Also printed: the peak memory of an import, of a quarter of the photos and of all.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

INNER = {"JPEGImages": ".jpg", "SegmentationClass": ".png"}
BARE = "import sys; from pathlib import Path; from bench.importing import bare; bare(Path(sys.argv[1]))"


def bare(folder: Path) -> None:
    for name, suffix in INNER.items():
        for path in sorted((folder / name).glob(f"*{suffix}")):
            with Image.open(path) as image:
                image.load()


def export(source: Path, dest: Path, num: int) -> Path:
    """Write the photos that have a mask, each under as many names as needed, in VOC's layout."""
    keys = sorted(path.stem for path in (source / "SegmentationClass").glob("*.png"))
    for name, suffix in INNER.items():
        (dest / name).mkdir(parents=True)
        for i in range(num):
            key, repeat = keys[i % len(keys)], i // len(keys)
            file, first = dest / name / f"{key}-{repeat}{suffix}", dest / name / f"{key}-0{suffix}"
            if repeat:
                file.hardlink_to(first)
            else:
                shutil.copyfile(source / name / f"{key}{suffix}", file)
    lists = dest / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = [f"{keys[i % len(keys)]}-{i // len(keys)}" for i in range(num)]
    for split, part in (("train", names[::2]), ("val", names[1::2])):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    return dest


def measured(command: Sequence[str | Path]) -> tuple[float, float]:
    """Return the seconds that a command takes, and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}: exit status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work, fcn = Path(scratch), Path(sys.executable).with_name("fcn")
        whole = export(arguments.folder, work / "whole", arguments.photos)
        quarter = export(arguments.folder, work / "quarter", arguments.photos // 4)

        def run(contestant: str, folder: Path = whole) -> tuple[float, float]:
            if contestant == "bare":
                return measured([sys.executable, "-c", BARE, folder])
            workers = {"one": "1", "two": "2"}[contestant]
            # A new folder each time, because of ext4
            dest = Path(tempfile.mkdtemp(dir=work)) / "mine"
            return measured([fcn, "import", folder, dest, "--workers", workers])

        few = many = run("one", quarter)[1]
        times: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
        for _ in range(arguments.rounds):
            for name, seconds in times.items():
                elapsed, memory = run(name)
                seconds.append(elapsed)
                if name == "one":
                    many = memory
        for name, seconds in times.items():
            ratios = [bare_s / own_s for own_s, bare_s in zip(seconds, times["bare"], strict=True)]
            print(
                f"{name:5} median {arguments.photos / statistics.median(seconds):6.1f} photos/s  "
                f"{statistics.median(ratios):.2f} of the bare loop"
            )
        print(
            f"peak memory {few:.0f} MiB for {arguments.photos // 4} photos, {many:.0f} for {arguments.photos}"
        )


if __name__ == "__main__":
    main()
