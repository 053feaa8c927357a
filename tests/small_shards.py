"""Shards of seven samples, for tests that read, write and damage them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

CLASSES = ("background", "cat", "dog")
KEYS = tuple(f"2007_{number:06d}" for number in range(7))
PER_SHARD = 3  # of 7: two full shards and one sample in the third


def draw(key: str) -> Sample:
    """Return a noisy photo and its label, whose size and content depend on the key."""
    random = np.random.default_rng(int(key[-6:]))
    height, width = (int(side) for side in random.integers(4, 12, 2))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(file, "JPEG", comment=key)
    label = random.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    return Sample.checked(key, file.getvalue(), label)


def write(
    dest: Path, keys: Sequence[str] = KEYS, load: Callable[[str], Sample] = draw, **options: Any
) -> Path:
    settings: dict[str, Any] = {
        "split": "train",
        "classes": CLASSES,
        "samples_per_shard": PER_SHARD,
        "seed": 3,
    }
    write_shards(keys, load, dest, **settings | options)
    return dest


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
