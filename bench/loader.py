"""Measure images a second from disk to a batch of tensors, by one process that reads ahead: ours, and a folder's.

    python -m bench.loader FOLDER      # with JPEGImages/ and SegmentationClass/, such as VOCdevkit/VOC2012

Contestants, taking turns in every round, with the same images, all 500 x 375:
    shards   pipeline.loading.loader.loader, one process, the manifest's sha256 checked for every sample
    webdataset  the same tars and decoders by webdataset.DataPipeline and WebLoader, one process, nothing checked
    folder   a torch Dataset that opens the files as torchvision's VOCSegmentation does, DataLoader with one process
    bare     the decoders of `shards` alone, in this process, on bytes in memory: no reading, checking, handing over
    pillow   the same with Pillow for both files
"""

import argparse
import importlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms.v2.functional import pil_to_tensor

from pipeline.loading.loader import Stream, loader
from pipeline.shards.dataset import decode_photo
from pipeline.shards.labels import decode_label
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

SIZE = (500, 375)
wds: Any = importlib.import_module("webdataset")  # whose names no type checker sees


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """The reading of torchvision.datasets.VOCSegmentation, then conversion to tensors."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        photo, label = self.pairs[index]
        return pil_to_tensor(Image.open(photo).convert("RGB")), pil_to_tensor(Image.open(label))


def find_pairs(folder: Path, num: int) -> list[tuple[Path, Path]]:
    pairs = []
    for photo in sorted((folder / "JPEGImages").glob("*.jpg")):
        label = folder / "SegmentationClass" / f"{photo.stem}.png"
        if label.exists() and Image.open(photo).size == SIZE:
            pairs.append((photo, label))
    assert pairs, folder
    return pairs[:num]


def write(pairs: Sequence[tuple[Path, Path]], dest: Path) -> Shards:
    files = {photo.stem: (photo, label) for photo, label in pairs}

    def load(key: str) -> Sample:
        photo, label = files[key]
        return Sample.checked(key, photo.read_bytes(), np.array(Image.open(label)))

    classes = [str(number) for number in range(21)]
    write_shards(list(files), load, dest, split="train", classes=classes, samples_per_shard=100, seed=0)
    return open_shards(dest)


Batches = Iterator[object]


def contestants(
    pairs: Sequence[tuple[Path, Path]], shards: Shards, batch_size: int
) -> dict[str, Callable[[], Batches]]:
    """Return functions that give endless batches."""
    stream = Stream(shards, batch_size, seed=0)
    memory = [(jpeg, bytes(png)) for jpeg, png in map(shards.read, range(len(shards)))]

    def folder() -> Batches:
        sampler = RandomSampler(pairs, replacement=True, num_samples=10**6)
        return iter(DataLoader(Folder(pairs), batch_size, sampler=sampler, num_workers=1))

    def of_webdataset() -> Batches:
        def decoded(sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return decode_photo(bytearray(sample["jpg"])), torch.from_numpy(decode_label(sample["png"]))

        def stacked(samples: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
            return [torch.stack(tensors) for tensors in zip(*samples, strict=True)]

        pipeline = wds.DataPipeline(
            wds.ResampledShards(sorted(map(str, Path(shards.folder).glob("*.tar")))),
            wds.tarfile_to_samples(),
            wds.map(decoded),
            wds.batched(batch_size, collation_fn=stacked),
        )
        return iter(wds.WebLoader(pipeline, batch_size=None, num_workers=1))

    def bare(decode: Callable[[Any], object], decode_png: Callable[[Any], object]) -> Batches:
        for step in count():
            for position in range(batch_size):
                jpeg, png = memory[(step * batch_size + position) % len(memory)]
                decode(jpeg)
                decode_png(png)
            yield None

    return {
        "shards": lambda: loader(stream, count(), num_workers=1),
        "webdataset": of_webdataset,
        "folder": folder,
        "bare": lambda: bare(decode_photo, decode_label),
        "pillow": lambda: bare(pillow, pillow),
    }


def pillow(data: memoryview) -> object:
    return np.asarray(Image.open(io.BytesIO(data)))


def rate(batches: Batches, num: int) -> float:
    """Return batches a second, after those read ahead at the start."""
    for _ in islice(batches, 5):
        pass
    start = time.perf_counter()
    for _ in islice(batches, num):
        pass
    return num / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=320, help="at most so many different ones")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=40, help="in a round")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        pairs = find_pairs(arguments.folder, arguments.images)
        work = contestants(pairs, write(pairs, Path(scratch, "train")), arguments.batch_size)
        rates: dict[str, list[float]] = {name: [] for name in work}
        for number in range(arguments.rounds + 1):
            for name, batches in work.items():
                images_per_s = rate(batches(), arguments.batches) * arguments.batch_size
                if number:  # the first round warms up
                    rates[name].append(images_per_s)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{len(pairs)} images of {SIZE[0]}x{SIZE[1]}, batches of {arguments.batch_size}, torch {torch.__version__}"
    )
    for name, values in rates.items():
        ratios = [shards / rate for shards, rate in zip(rates["shards"], values, strict=True)]
        print(
            f"{name:10} median {medians[name]:6.1f} images/s  (min {min(values):.1f}, max {max(values):.1f})  "
            f"shards / {name}, median over rounds: {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
