"""Shards of small drawn images, for tests of code that reads whole splits."""

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
    """Return a JPEG whose pixels depend on the number alone."""
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
    """Write shards and open them.

    contents: by key, the number that decides the pixels.
    samples: by key, more samples.
    """

    def load(key: str) -> Sample:
        given = (samples or {}).get(key)
        return given or Sample.checked(key, photo(contents[key]), np.zeros((6, 8), np.uint8))

    keys = [*contents, *(samples or {})]
    write_shards(keys, load, dest, split=split, classes=CLASSES, samples_per_shard=4, seed=0)
    return open_shards(dest)
