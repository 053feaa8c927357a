"""The gradients of a step in one process, and split over real ones joined by gloo. In float64."""

import dataclasses
import io
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from fcn import IGNORE_LABEL
from fcn.model import FCN
from pipeline import config
from pipeline.config.job import Job
from pipeline.datasets import synthetic
from pipeline.distributed.batch_norm import across_workers, set_training
from pipeline.distributed.gradients import exchanging
from pipeline.distributed.rank import ALONE, Place
from pipeline.distributed.shared_memory import SharedMemory
from pipeline.loading.loader import loader
from pipeline.loading.transforms import Transforms
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from pipeline.training.loop import make_stream
from pipeline.training.step import gradients
from tests.gloo import run_in_processes
from tests.training.test_loop import TINY

CLASSES = synthetic.CLASSES
BATCH = 12
VALID = (1024, 3, 500, 0, 1000, 1, 0, 700, 64, 1024, 2, 9)  # pixels of 1024 that are not void
PLAIN = TINY | {"dropout": 0.0, "score_init": "random"}
NORMED = PLAIN | {"batch_norm": True}

# what: model, changes of the job, and the splits (workers, inner steps) that must give the same
SAME = {
    "sum": (PLAIN, {"loss": "sum"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "mean": (PLAIN, {"loss": "mean"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "image_mean": (PLAIN, {"loss": "image_mean"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "frozen": (NORMED, {"loss": "mean", "batch_norm": "frozen"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "sync": (NORMED, {"loss": "mean", "batch_norm": "sync"}, [(2, 1), (3, 1)]),
    # With one image at a time, what is drawn at random is the image's own
    "random": (PLAIN | {"dropout": 0.5}, {"loss": "mean", "sample_pixels": 0.5}, [(2, 6), (3, 4)]),
}
ALONE_SPLIT = {"random": 12}  # inner steps of the one worker the others are held against; 1 for the rest


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Twelve noisy images of 32x32 whose void is spread unevenly."""
    random = np.random.Generator(np.random.PCG64(0))
    images = random.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, len(CLASSES), (BATCH, 32, 32), dtype=np.uint8)
    for label, num_valid in zip(labels, VALID, strict=True):
        label.ravel()[num_valid:] = IGNORE_LABEL

    def load(key: str) -> Sample:
        file = io.BytesIO()
        Image.fromarray(images[int(key)]).save(file, "JPEG")
        return Sample.checked(key, file.getvalue(), labels[int(key)])

    dest = tmp_path_factory.mktemp("noise") / "train"
    keys = [str(i) for i in range(BATCH)]
    write_shards(keys, load, dest, split="train", classes=CLASSES, samples_per_shard=5, seed=0)
    return dest


@pytest.fixture(scope="module")
def job(noise) -> Job:
    return Job(
        identity="tiny",
        net="fcn32s",
        model={},
        classes=CLASSES,
        parent=Path(),
        shards=noise,
        validation=noise,
        folder=Path(),
        lineage={},
        iterations=4,
        lr=0.1,
        batch_size=BATCH,
        accumulation=1,
        loss="mean",
        optimizer="sgd",
        momentum=0.9,
        weight_decay=0,
        trunk_lr_factor=1.0,
        schedule="fixed",
        sampling="epochs",
        size_buckets=False,
        transforms=Transforms(),
        precision="float32",
        batch_norm="local",
        class_balancing=False,
        sample_pixels=1.0,
        exchange=config.Exchange().model_dump(),
        seed=5,
        loader_workers=0,
        log_every=1,
        log_every_s=0,
        checkpoint_every=1,
        validate_every=0,
        validate_images=1,
    )


def one_step(job: Job, place: Place) -> dict[str, torch.Tensor]:
    """Gradients, running statistics and what was counted in step 2, and how often gradients were exchanged."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    net = across_workers(FCN(**job.model, num_classes=len(CLASSES), stride=32), job.batch_norm, place)
    set_training(net, job.batch_norm)
    model = exchanging(net, place, start=0, **job.exchange)
    shards, step = open_shards(job.shards), 2
    steps = range(step * job.accumulation, (step + 1) * job.accumulation)
    batches = list(loader(make_stream(job, shards, place), steps))
    average = SharedMemory.average
    with patch.object(SharedMemory, "average", autospec=True, side_effect=average) as exchange:
        counted = gradients(job, model, batches, step, place, None)
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {name: b for name, b in net.named_buffers() if "running" in name}
    torch.set_default_dtype(torch.float32)
    return found | {"counted": place.total(counted), "exchanges": torch.tensor(exchange.call_count)}


def work(place: Place, job: Job, folder: Path) -> None:
    for what, (model, changes, splits) in SAME.items():
        for world, accumulation in splits:
            if world == place.world > 1:
                changed = dataclasses.replace(job, model=model, accumulation=accumulation, **changes)
                found = one_step(changed, place)
                if place.is_first:
                    torch.save(found, folder / f"{what}-{world}-{accumulation}.pt")


@pytest.fixture(scope="module")
def by_split(job, tmp_path_factory) -> Path:
    """The gradients of every split over more than one worker."""
    folder = tmp_path_factory.mktemp("splits")
    run_in_processes(folder, [2, 3], work, job, folder)
    return folder


@pytest.mark.parametrize(
    ("what", "world", "accumulation"),
    [(what, *split) for what, (_, _, splits) in SAME.items() for split in splits],
)
def test_any_split_of_a_batch_gives_the_gradients_of_the_whole(job, by_split, what, world, accumulation):
    model, changes, _ = SAME[what]
    whole = dataclasses.replace(job, model=model, accumulation=ALONE_SPLIT.get(what, 1), **changes)
    expected = one_step(whole, ALONE)
    if world == 1:
        found = one_step(dataclasses.replace(whole, accumulation=accumulation), ALONE)
    else:
        found = torch.load(by_split / f"{what}-{world}-{accumulation}.pt")
    assert found.keys() == expected.keys()
    assert found["backbone.conv1_1.weight"].abs().max() > 0
    # A bias before batch norm has a gradient of nothing but rounding
    rounding = 1e-12 * max(t.abs().max().item() for name, t in expected.items() if "weight" in name)
    for name in expected.keys() - {"exchanges"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=rounding, msg=name)


@pytest.mark.skipif(
    sys.platform != "linux", reason="it counts what goes through memory, which Linux shares alone"
)
def test_gradients_are_exchanged_once_a_step_however_many_inner_steps(by_split):
    times = [torch.load(by_split / f"mean-2-{inner}.pt")["exchanges"].item() for inner in (1, 6)]
    assert times[0] == times[1] > 0


def test_local_statistics_are_another_result_than_those_of_all_workers(job):
    """Or the test above would not tell sync from local: batch norm sees the difference between halves of a batch."""
    local = dataclasses.replace(job, model=NORMED)
    whole, halves = (one_step(dataclasses.replace(local, accumulation=n), ALONE) for n in (1, 2))
    name = "backbone.conv1_1.weight"
    assert (whole[name] - halves[name]).abs().max() > 1e-3 * whole[name].abs().max()
