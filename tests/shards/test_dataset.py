"""pipeline/shards/dataset.py: a sample's pixels, and what a damaged file does to the process that decodes it."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.shards.dataset import Batch, Samples, decode_jpeg
from pipeline.shards.read import Shards
from pipeline.shards.sample import Sample
from tests.noise import noise, shards_of

PHOTOS = {  # key: (mode, JPEG options)
    "rgb": ("RGB", {}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True, "subsampling": 2}),
    "one_pixel": ("RGB", {}),
}


def photo(key: str) -> Sample:
    """A flat photo of the key's mode, 6 x 9 pixels, and its label."""
    mode, options = PHOTOS[key]
    height, width = (1, 1) if key == "one_pixel" else (6, 9)
    colour = {"RGB": (200, 100, 50), "L": 120, "CMYK": (0, 255, 255, 0)}[mode]  # CMYK: red
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, "JPEG", quality=95, **options)
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width) % 3
    label[0, 0] = IGNORE_LABEL
    return Sample.checked(key, file.getvalue(), label)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return shards_of(tmp_path_factory.mktemp("photos") / "train", list(PHOTOS), photo)


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    keys = [f"{number:02d}" for number in range(10)]
    return shards_of(tmp_path_factory.mktemp("noises") / "train", keys, noise)


def of_key(shards: Shards, key: str) -> Batch:
    return Samples(shards)[shards.keys.index(key)]


@pytest.mark.parametrize(
    ("key", "colour"),
    [
        ("rgb", (200, 100, 50)),
        ("grey", (120, 120, 120)),
        ("cmyk", (255, 0, 0)),
        ("progressive", (200, 100, 50)),
        ("one_pixel", (200, 100, 50)),
    ],
)
def test_every_kind_of_jpeg_becomes_three_channels_of_rgb(photos: Shards, key: str, colour: tuple[int, ...]):
    image, label, keys = of_key(photos, key)
    height, width = photo(key).label.shape
    assert (image.shape, image.dtype) == ((1, 3, height, width), torch.uint8)
    assert (label.shape, label.dtype) == ((1, height, width), torch.uint8)
    assert keys == (key,)
    assert (image.float() - torch.tensor(colour)[:, None, None]).abs().max() <= 4  # what JPEG loses


@pytest.mark.parametrize("key", PHOTOS)
def test_a_label_keeps_its_values(photos: Shards, key: str):
    assert np.array_equal(of_key(photos, key).label[0].numpy(), photo(key).label)


def test_pixels_are_where_pillow_puts_them(noises: Shards):
    for index, key in enumerate(noises.keys):
        with Image.open(io.BytesIO(noise(key).jpeg)) as image:
            assert Samples(noises)[index].image[0].permute(1, 2, 0).tolist() == np.asarray(image).tolist()


def test_there_are_as_many_samples_as_in_the_shards(noises: Shards):
    assert len(Samples(noises)) == len(noises) == 10


# --- damaged files, in a process of their own, which must not crash

DAMAGE = """
import io, random, sys, warnings
import numpy as np
from PIL import Image
from pipeline.shards.dataset import decode_jpeg
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
            found = decode_jpeg(data).permute(1, 2, 0).numpy()
        except Exception:
            found = None
        if expected is not None:
            assert found is not None and np.array_equal(found, expected)
        outcomes["refused" if found is None else "whole"] += 1
print(outcomes["whole"], outcomes["refused"])
"""


def jpegs() -> dict[str, bytes]:
    """A busy image in every kind of JPEG there is."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), np.uint8)
    image = Image.fromarray(pixels).resize((112, 80))
    kinds = {
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "4:2:0": {"subsampling": 2},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 1},
        "quality 1": {"quality": 1},
        "grey": {},
        "cmyk": {},
    }
    files = {}
    for name, options in kinds.items():
        file = io.BytesIO()
        mode = {"grey": "L", "cmyk": "CMYK"}.get(name, "RGB")
        image.convert(mode).save(file, "JPEG", **options)
        files[name] = file.getvalue()
    return files


@pytest.mark.parametrize("kind", sorted(jpegs()))
def test_every_kind_of_jpeg_has_pillows_pixels_to_the_bit(kind: str):
    data = jpegs()[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_jpeg(bytearray(data)).permute(1, 2, 0).numpy(), expected)


def test_of_hundreds_of_damaged_files_none_crashes_and_all_that_pillow_takes_have_its_pixels():
    files = "\n".join(data.hex() for data in jpegs().values())
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE], input=files, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, refused = map(int, done.stdout.split())
    assert whole + refused == 800
    assert min(whole, refused) > 100


def test_real_photos_have_the_pixels_pillow_gives(real_data: Path):
    for path in sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[::40]:
        with Image.open(path) as photo:
            expected = np.asarray(photo.convert("RGB"))
        assert np.array_equal(decode_jpeg(bytearray(path.read_bytes())).permute(1, 2, 0).numpy(), expected)
