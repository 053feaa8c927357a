"""A project's folder with its profiles, and small drawn folders of photos and masks."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import own_files
from tests.conftest import ROOT

MISSING = "weights-that-are-not-installed"
CLASSES = ["background", "cat", "dog"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with params.yaml and profiles/ of this project; no published weights are at hand."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    laptop = folder / "profiles" / "laptop.yaml"
    laptop.write_text(re.sub("package: .*", f"package: {MISSING}", laptop.read_text("utf-8")), "utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder as docs/own-data.md describes it, from one label map a photo."""

    def write(
        train: list[np.ndarray], val: list[np.ndarray] | None = None, classes: list[str] = CLASSES
    ) -> Path:
        folder = tmp_path / "mine"
        for name in own_files.FOLDERS:
            (folder / name).mkdir(parents=True)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), "utf-8")
        random = np.random.default_rng(0)
        for split, labels in (("train", train), ("val", val or train[:1])):
            for number, label in enumerate(labels):
                photo = random.integers(0, 256, (*label.shape, 3), np.uint8)
                Image.fromarray(photo).save(folder / "images" / f"{split}{number}.jpg")
                Image.fromarray(label).save(folder / "masks" / f"{split}{number}.png")
            names = "".join(f"{split}{number}\n" for number in range(len(labels)))
            (folder / "splits" / f"{split}.txt").write_text(names)
        return folder

    return write


def label(height: int, width: int, *values: int) -> np.ndarray:
    """A label map whose first pixels have these values, and background beyond."""
    flat = np.zeros(height * width, np.uint8)
    flat[: len(values)] = values
    return flat.reshape(height, width)
