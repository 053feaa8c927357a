"""Compare writing shards with a bare loop that reads, decodes and hashes the same files, in images a second.

    python -m bench.sharding FOLDER      # with JPEGImages/ and SegmentationClass/, such as VOCdevkit/VOC2012

Contestants, taking turns in every round, with the same images:
    bare     each file read, its bytes hashed, decoded by Pillow, the photo's pixels hashed; nothing written
    shards   pipeline.shards.write in this process: the same, plus checking, counting and coding labels, tars, manifest
    two      pipeline.shards.write on two Ray processes that are already running
    sbd      shards of the same labels as SBD publishes them: MATLAB files, deflated
All take every image `--repeat` times, each time under another name: a data set of a few thousand images, so that fixed
costs do not count. Also printed: the peak memory of the writing processes, after one pass and at the end.
"""

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from pipeline.cluster import ray_workers
from pipeline.datasets import sbd, voc
from pipeline.shards.sample import Sample
from pipeline.shards.write import MapFunction, write_shards

CLASSES = [str(number) for number in range(21)]
PER_SHARD = 125


def bare(root: Path, keys: Sequence[str]) -> None:
    for key in keys:
        for path in voc.LAYOUT.files(root, key.partition("-")[0]):
            data = path.read_bytes()
            hashlib.sha256(data).digest()
            with Image.open(path) as image:
                if path.suffix == ".jpg":
                    hashlib.sha256(image.convert("RGB").tobytes()).digest()
                else:
                    np.array(image)


def load(layout: object, root: Path, key: str) -> Sample:
    """Load a sample; a repeated key is numbered after a '-'."""
    sample = layout.sample(root, key.partition("-")[0], len(CLASSES))  # pyright: ignore[reportAttributeAccessIssue]
    return replace(sample, key=key)


def write(layout: object, root: Path, keys: Sequence[str], scratch: Path, run: MapFunction = map) -> None:
    dest = scratch / "train"
    shutil.rmtree(dest, ignore_errors=True)
    write_shards(
        keys,
        partial(load, layout, root),
        dest,
        split="train",
        classes=CLASSES,
        samples_per_shard=PER_SHARD,
        seed=0,
        run=run,
    )


def as_sbd(root: Path, keys: Sequence[str], dest: Path) -> Path:
    """Write the same photos and labels in SBD's layout."""
    (dest / "img").mkdir(parents=True)
    (dest / "cls").mkdir()
    for key in keys:
        photo, label = voc.LAYOUT.files(root, key)
        shutil.copy(photo, dest / "img")
        truth = np.array(Image.open(label))
        savemat(dest / "cls" / f"{key}.mat", {"GTcls": {"Segmentation": truth}}, do_compression=True)
    return dest


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mib(_: object) -> tuple[int, float]:
    time.sleep(0.2)  # or one process would take both tasks
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=4)
    arguments = parser.parse_args()
    root = arguments.folder.absolute()
    keys = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png"))[: arguments.images]
    with tempfile.TemporaryDirectory() as folder, ray_workers.tasks(2) as two:
        scratch = Path(folder)
        mats = as_sbd(root, keys, scratch / "sbd")

        def peaks() -> Iterator[float]:
            return iter(dict(two(peak_mib, range(4))).values())

        write(voc.LAYOUT, root, keys, scratch, two)
        few = max(peaks())
        keys = [f"{key}-{n}" for key in keys for n in range(arguments.repeat)]
        work = {
            "bare": lambda: bare(root, keys),
            "shards": lambda: write(voc.LAYOUT, root, keys, scratch),
            "two": lambda: write(voc.LAYOUT, root, keys, scratch, two),
            "sbd": lambda: write(sbd.LAYOUT, mats, keys, scratch),
        }
        times: dict[str, list[float]] = {name: [] for name in work}
        for number in range(arguments.rounds + 1):
            for name, contestant in work.items():
                elapsed = seconds(contestant)
                if number:  # the first round warms up
                    times[name].append(elapsed)
        print(f"{len(keys)} images, {PER_SHARD} to a shard")
        for name, values in times.items():
            ratios = [bare_s / own_s for own_s, bare_s in zip(values, times["bare"], strict=True)]
            print(
                f"{name:7} median {len(keys) / statistics.median(values):6.1f} images/s  "
                f"{statistics.median(ratios):.2f} of the bare loop"
            )
        speedup = [one_s / two_s for one_s, two_s in zip(times["shards"], times["two"], strict=True)]
        print(f"two processes over one: {statistics.median(speedup):.2f}x")
        memory = (
            f"{few:.0f} MiB after {len(keys) // arguments.repeat} images, {max(peaks()):.0f} MiB at the end"
        )
        print(f"most memory of a process: {memory}")


if __name__ == "__main__":
    main()
