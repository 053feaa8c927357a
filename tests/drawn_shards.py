"""Shards of small drawn images, for tests of what looks at whole splits."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

CLASSES = ("background", "cat", "dog")


def photo(content: int, mode: str = "RGB") -> bytes:
    """The JPEG of a number: the same number, the same pixels."""
    file = io.BytesIO()
    colours = np.random.default_rng(content).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(colours).convert(mode).save(file, "JPEG")
    return file.getvalue()


def shards_of(
    dest: Path,
    contents: Mapping[str, int],
    split: str = "train",
    samples: Mapping[str, Sample] | None = None,
) -> Shards:
    """contents: by key, the number that decides the pixels.   samples: by key, in place of a drawn one."""

    def load(key: str) -> Sample:
        if samples and key in samples:
            return samples[key]
        return Sample.checked(key, photo(contents[key]), np.zeros((6, 8), np.uint8))

    keys = [*contents, *(samples or {})]
    write_shards(keys, load, dest, split=split, classes=CLASSES, samples_per_shard=4, seed=0)
    return open_shards(dest)
