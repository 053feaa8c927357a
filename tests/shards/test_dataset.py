"""pipeline/shards/dataset.py: a sample's pixels, and that no damaged file crashes the process that decodes it."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.errors import ShardError
from pipeline.shards.dataset import Dataset, decode_photo
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from tests.noise import shards_of
from tests.small_shards import KEYS, draw

KINDS = {  # of JPEG, by name: mode and options
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 1}),
    "quality 1": ("RGB", {"quality": 1}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
}


def jpeg(kind: str) -> bytes:
    """Return a busy photo of 112 x 80 pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), np.uint8)
    mode, options = KINDS[kind]
    file = io.BytesIO()
    Image.fromarray(pixels).resize((112, 80)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def pixels_of_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as photo:
        return np.asarray(photo.convert("RGB"))


@pytest.mark.parametrize("key", ["grey", "cmyk", "progressive"])
def test_a_sample_is_a_batch_of_one_photo_in_rgb_and_its_label(tmp_path: Path, key: str):
    label = np.arange(80 * 112, dtype=np.uint8).reshape(80, 112) % 3
    label[0, 0] = IGNORE_LABEL
    shards = shards_of(tmp_path / "train", [key], lambda key: Sample.checked(key, jpeg(key), label))
    batch = Dataset(shards)[0]
    assert (batch.image.shape, batch.image.dtype) == ((1, 3, 80, 112), torch.uint8)
    assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), pixels_of_pillow(jpeg(key)))
    assert (batch.label.shape, batch.label.dtype) == ((1, 80, 112), torch.uint8)
    assert np.array_equal(batch.label[0].numpy(), label)
    assert batch.keys == (key,)


@pytest.mark.parametrize("indices", [[], [3], [6, 0, 0, 2, 5]])
def test_reading_ahead_yields_the_samples_of_the_indices_in_their_order(whole: Path, indices: list[int]):
    dataset = Dataset(open_shards(whole))
    assert len(dataset) == len(KEYS)
    batches = list(dataset.read_ahead(indices))
    assert [batch.keys for batch in batches] == [(dataset.shards.keys[index],) for index in indices]
    for batch in batches:
        assert np.array_equal(batch.label[0].numpy(), draw(batch.keys[0]).label)


def test_reading_ahead_raises_a_samples_error_in_its_turn(folder: Path):
    dataset = Dataset(open_shards(folder))
    (folder / "shard-000002.tar").unlink()
    batches = dataset.read_ahead([0, 6])
    assert next(batches).keys == (dataset.shards.keys[0],)
    with pytest.raises(ShardError, match=r"shard-000002\.tar"):
        next(batches)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_has_the_pixels_of_pillow(kind: str):
    pixels = decode_photo(bytearray(jpeg(kind))).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, pixels_of_pillow(jpeg(kind)))


def test_real_photos_have_the_pixels_of_pillow(real_data: Path):
    for path in sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[::40]:
        data = path.read_bytes()
        pixels = decode_photo(bytearray(data)).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, pixels_of_pillow(data))


DAMAGE = """
import io, random, sys, warnings
import numpy as np
from PIL import Image
from pipeline.shards.dataset import decode_photo
warnings.simplefilter("ignore")
random.seed(1)
outcomes = {"whole": 0, "refused": 0}
for original in map(bytes.fromhex, sys.stdin.read().split()):
    for _ in range(100):
        data = bytearray(original)
        where = random.randrange(len(data))
        match random.randrange(4):
            case 0: data = data[:where]
            case 1: data[where] ^= 1 << random.randrange(8)
            case 2: data[random.randrange(min(600, len(data)))] ^= 1 << random.randrange(8)
            case 3: data[where : where + 50] = random.randbytes(len(data[where : where + 50]))
        try:
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except Exception:
            expected = None
        try:
            pixels = decode_photo(data).permute(1, 2, 0).numpy()
        except Exception:
            pixels = None
        if expected is not None:
            assert pixels is not None and np.array_equal(pixels, expected)
        outcomes["refused" if pixels is None else "whole"] += 1
print(outcomes["whole"], outcomes["refused"])
"""


def test_of_hundreds_of_damaged_files_none_crashes_and_all_that_pillow_takes_have_its_pixels():
    """In a process of its own, which a crash would end."""
    files = "\n".join(jpeg(kind).hex() for kind in KINDS)
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE], input=files, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, refused = map(int, done.stdout.split())
    assert whole + refused == 800
    assert min(whole, refused) > 100
