"""Small folders of photos and masks, and the command line."""

import csv
import io
import json
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures"


def jpeg(size: tuple[int, int] = (12, 16), seed: int = 0, **options) -> bytes:
    """A photo of (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def tiff_of_16_bit_colours(pixels: np.ndarray) -> bytes:
    """An uncompressed RGB TIFF of 16 bits a channel, which Pillow cannot write; pixels: (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    data = pixels.astype("<u2").tobytes()
    bits_at = 8 + 2 + 10 * 12 + 4
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, bits_at + 6),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return header + entries + struct.pack("<I3H", 0, 16, 16, 16) + data


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pairs(num: int = 4, values: tuple[int, ...] = (0, 1, 2), folder: str = "") -> dict[str, bytes | str]:
    """Photos with masks of all values, in images/ and masks/."""
    files: dict[str, bytes | str] = {}
    for number in range(num):
        mask = np.resize(np.array(values, np.uint8), (12, 16))
        files[f"images/{folder}p{number}.jpg"] = jpeg(seed=number)
        files[f"masks/{folder}p{number}.png"] = encoded(np.roll(mask, number))
    return files


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    """The label of each photo, by its path in the source."""
    with (folder / "names.csv").open(newline="", encoding="utf-8") as file:
        keys = {row["source"]: row["key"] for row in csv.DictReader(file)}
    return {source: np.array(Image.open(folder / "masks" / f"{key}.png")) for source, key in keys.items()}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "import.json").read_text("utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def unpacked(name: str, folder: Path) -> Path:
    """A fixture's export as a folder."""
    with zipfile.ZipFile(FIXTURES / f"{name}.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
def fcn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `fcn` with arguments; gives the exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fcn", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run
