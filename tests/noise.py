"""Shards of small noisy photos, for tests."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards


def noise(key: str) -> Sample:
    """A photo and label of noise, of a size of the key's own."""
    random = np.random.default_rng(int(key))
    height, width = random.integers(3, 12, 2)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(file, "JPEG")
    return Sample.checked(key, file.getvalue(), random.integers(0, 3, (height, width), np.uint8))


def shards_of(dest: Path, keys: list[str], load: Callable[[str], Sample]) -> Shards:
    write_shards(keys, load, dest, split="train", classes=["a", "b", "c"], samples_per_shard=4, seed=0)
    return open_shards(dest)
