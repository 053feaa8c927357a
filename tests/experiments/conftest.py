"""A project whose nets are so small that a chain trains in a second, in this process in place of Ray's workers."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.cluster import ray_workers
from pipeline.config import CHAIN, Profile
from pipeline.datasets import synthetic
from pipeline.distributed.rank import SINGLE
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from pipeline.tracking import follow
from pipeline.training.loop import train_worker
from tests.mlflow_server import write_database
from tests.stage_runs import sample_profile

NAME = "tiny"


@pytest.fixture(scope="session")
def values() -> dict[str, Any]:
    values = sample_profile()
    values["model"] |= {"width": 1 / 64, "batch_norm": False}
    values["train"] |= {"num_workers": 1, "batch_size": 2, "seed": 7}
    values["run"] = {"log_every": 1, "log_every_s": 0.0, "checkpoint_every": 2}
    values["nets"] = {net: {"lr": 1e-3, "iterations": 4} for net in CHAIN}
    values["evaluate"] = {"num_resamples": 200}
    return values


@pytest.fixture
def profile(values) -> Profile:
    return Profile.model_validate(values)


def write_split(root: Path, split: str, keys: str) -> None:
    def load(key: str) -> Sample:
        image, label = synthetic.picture("sbd_train", int(key), 32, seed=1)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        return Sample.checked(key, file.getvalue(), label)

    dest = root / "data" / NAME / "shards" / split
    write_shards(list(keys), load, dest, split=split, classes=synthetic.CLASSES, samples_per_shard=2, seed=0)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template")
    write_split(root, "train", "012")
    write_split(root, "val", "3456")
    verdict = root / "data" / NAME / "inspection" / "verdict.json"
    verdict.parent.mkdir(parents=True)
    verdict.write_text("{}")
    write_database(root)
    return root


@pytest.fixture
def root(tmp_path, template, monkeypatch) -> Path:
    """A project with shards and MLflow's database, which is this process's folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follow, "POLL_S", 0.05)
    root = Path(shutil.copytree(template, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Training a variant sets these for its process."""
    yield
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The titles of the nets whose training was started."""
    return train_here(monkeypatch)


def train_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    titles = []

    def run_workers(worker, job, **_):
        assert worker is train_worker
        titles.append(job.title)
        train_worker(job, SINGLE)

    monkeypatch.setattr(ray_workers, "run_workers", run_workers)
    return titles
