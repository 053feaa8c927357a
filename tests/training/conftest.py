"""Shards, a backbone and jobs so small that training them takes a second."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.config.job import Job
from pipeline.datasets import synthetic
from pipeline.models import backbone
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from tests.jobs import TINY, tiny_job

CLASSES = synthetic.CLASSES


@pytest.fixture(scope="module", autouse=True)
def as_before() -> Iterator[None]:
    """train_worker sets this for its process."""
    yield
    torch.set_flush_denormal(False)


def write(dest: Path, labels: list[np.ndarray], images: list[np.ndarray], split: str = "train") -> Path:
    def load(key: str) -> Sample:
        file = io.BytesIO()
        Image.fromarray(images[int(key)]).save(file, "JPEG", quality=90)
        return Sample.checked(key, file.getvalue(), labels[int(key)])

    keys = [str(i) for i in range(len(images))]
    write_shards(keys, load, dest, split=split, classes=CLASSES, samples_per_shard=3, seed=0)
    return dest


def write_drawn(dest: Path, split: str) -> Path:
    """Four drawings of 32x32, with void borders."""
    images, labels = zip(*(synthetic.picture("sbd_train", i, 32, 1) for i in range(4)), strict=True)
    return write(dest / split, labels, images, split)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    return write_drawn(tmp_path_factory.mktemp("drawn"), "train")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory) -> Path:
    return write_drawn(tmp_path_factory.mktemp("held_out"), "val")


def noisy(dest: Path, sizes: list[tuple[int, int]], num_valid: list[int] | None = None) -> Path:
    """Noisy images of these sizes. num_valid: how many pixels of each are not void, all by default."""
    random = np.random.Generator(np.random.PCG64(len(sizes)))
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    labels = [random.integers(0, len(CLASSES), size, dtype=np.uint8) for size in sizes]
    for label, number in zip(labels, num_valid or [], strict=False):
        label.ravel()[number:] = IGNORE_LABEL
    return write(dest / "train", labels, images)


@pytest.fixture(scope="session")
def uneven(tmp_path_factory) -> Path:
    """Four images with 1024, 3, 500 and 0 valid pixels."""
    return noisy(tmp_path_factory.mktemp("uneven"), [(32, 32)] * 4, [1024, 3, 500, 0])


@pytest.fixture(scope="session")
def mixed(tmp_path_factory) -> Path:
    """Five images of five sizes."""
    return noisy(tmp_path_factory.mktemp("mixed"), [(32, 40), (40, 32), (17, 50), (33, 33), (64, 20)])


@pytest.fixture(scope="session")
def trunk(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trunk") / "backbone.pt"
    backbone.write_random(path, TINY, seed=3)
    return path


@pytest.fixture
def make_job(tmp_path, drawn, held_out, trunk):
    def make(name: str = "run", model: dict | None = None, **changes) -> Job:
        settings = {"shards": drawn, "validation": held_out, "parent": trunk, "folder": tmp_path / name}
        job = tiny_job(**settings | changes)
        job.model.update(model or {})
        job.folder.mkdir()
        return job

    return make
