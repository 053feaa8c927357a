"""The gradients of a step in one process, and split over real ones joined by gloo. In float64."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn import IGNORE_LABEL
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.config.training import Terms
from pipeline.datasets import synthetic
from pipeline.distributed.batch_norm import across_workers, set_training
from pipeline.distributed.gradients import average_gradients
from pipeline.distributed.rank import SINGLE, Rank
from pipeline.loading.loader import loader
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from pipeline.training.loop import make_stream
from pipeline.training.step import backward, class_weights
from tests.gloo import run_in_processes
from tests.jobs import TINY, changed, tiny_job
from tests.training.conftest import write

CLASSES = synthetic.CLASSES
BATCH = 12
VALID = (1024, 3, 500, 0, 1000, 1, 0, 700, 64, 1024, 2, 9)  # pixels of 1024 that are not void
PLAIN = TINY | {"dropout": 0.0, "score_init": "random"}
MODEL = {"num_classes": len(CLASSES), "stride": 32}
NORMED = PLAIN | {"batch_norm": True}
MIXED = {
    "terms": Terms(cross_entropy=1.0, focal=0.5, dice=2.0),
    "label_smoothing": 0.1,
    "class_weights": {"disc": 3.0},
}

# what: model, changes of the job, and the splits (workers, inner steps) that must give the same
SAME = {
    "sum": (PLAIN, {"loss": "sum"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "mean": (PLAIN, {"loss": "mean"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "image_mean": (PLAIN, {"loss": "image_mean"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "frozen": (NORMED, {"loss": "mean", "batch_norm": "frozen"}, [(1, 12), (2, 1), (2, 6), (3, 1), (3, 2)]),
    "focal": (PLAIN, {"loss": "mean", "terms": Terms(focal=1.0)}, [(1, 12), (2, 6), (3, 2)]),
    "dice": (PLAIN, {"loss": "mean", "terms": Terms(dice=1.0)}, [(1, 12), (2, 6), (3, 2)]),
    "dice, images": (PLAIN, {"loss": "image_mean", "terms": Terms(dice=1.0)}, [(1, 12), (3, 2)]),
    "inverse": (PLAIN, {"loss": "mean", "class_weights": "inverse"}, [(1, 12), (2, 6)]),
    "mixed, mean": (PLAIN, {"loss": "mean"} | MIXED, [(1, 12), (2, 6), (3, 2)]),
    "mixed, sum": (PLAIN, {"loss": "sum"} | MIXED, [(1, 12), (2, 6), (3, 2)]),
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
    return tiny_job(noise, noise, batch_size=BATCH, lr=0.1, iterations=4, weight_decay=0.0, model={})


def one_step(job: Job, rank: Rank) -> dict[str, torch.Tensor]:
    """Gradients, running statistics and what was counted in step 2, and how often gradients were exchanged."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    net = across_workers(FCN(**job.model, num_classes=len(CLASSES), stride=32), job.train.batch_norm, rank)
    set_training(net, job.train.batch_norm)
    model = average_gradients(net, rank, compression="none", bucket_mb=25)
    shards, step = open_shards(job.shards), 2
    steps = range(step * job.train.accumulation, (step + 1) * job.train.accumulation)
    batches = list(loader(make_stream(job, shards, rank), steps))
    loss = backward(job, model, batches, step, rank, class_weights(job, shards.class_pixels, rank.device))
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {name: b for name, b in net.named_buffers() if "running" in name}
    torch.set_default_dtype(torch.float32)
    return found | {"loss": rank.all_reduce(loss)}


def work(rank: Rank, job: Job, folder: Path) -> None:
    for what, (model, changes, splits) in SAME.items():
        for world, accumulation in splits:
            if world == rank.world_size > 1:
                changed_job = changed(job, model=model, accumulation=accumulation, **changes)
                found = one_step(changed_job, rank)
                if rank.is_first:
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
    whole = changed(job, model=model, accumulation=ALONE_SPLIT.get(what, 1), **changes)
    expected = one_step(whole, SINGLE)
    if world == 1:
        found = one_step(changed(whole, accumulation=accumulation), SINGLE)
    else:
        found = torch.load(by_split / f"{what}-{world}-{accumulation}.pt")
    assert found.keys() == expected.keys()
    assert found["backbone.conv1_1.weight"].abs().max() > 0
    # A bias before batch norm has a gradient of nothing but rounding
    rounding = 1e-12 * max(t.abs().max().item() for name, t in expected.items() if "weight" in name)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=rounding, msg=name)


def test_local_statistics_are_another_result_than_those_of_all_workers(job):
    """Or the test above would not tell sync from local: batch norm sees the difference between halves of a batch."""
    local = changed(job, model=NORMED)
    whole, halves = (one_step(changed(local, accumulation=n), SINGLE) for n in (1, 2))
    name = "backbone.conv1_1.weight"
    assert (whole[name] - halves[name]).abs().max() > 1e-3 * whole[name].abs().max()


@pytest.mark.parametrize("what", ["mean", "focal", "dice", "mixed, sum"])
def test_in_bfloat16_a_split_changes_no_more_than_rounding(noise, what):
    model, changes, _ = SAME[what]
    whole = changed(
        tiny_job(noise, noise, batch_size=BATCH), model=model | MODEL, precision="bfloat16", **changes
    )
    batches = [gradient_of(changed(whole, accumulation=n)) for n in (1, 12)]
    assert all(gradient.isfinite().all() for gradient in batches)
    assert (batches[0] - batches[1]).abs().max() < 0.02 * batches[0].abs().max()


@pytest.mark.parametrize("what", ["mean", "focal", "dice", "dice, images", "mixed, mean", "mixed, sum"])
def test_a_step_without_a_valid_pixel_costs_nothing_and_has_no_gradient(tmp_path, what):
    label = np.full((32, 32), IGNORE_LABEL, np.uint8)
    void = write(tmp_path / "void", [label] * 2, [np.zeros((32, 32, 3), np.uint8)] * 2)
    model, changes, _ = SAME[what]
    job = changed(tiny_job(void, void), model=model | MODEL, **changes)
    net, loss = stepped(job)
    assert loss[0] == 0
    assert all(not p.grad.any() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("none", None),
        ({"disc": 3.0, "cross": 0.5}, [1.0, 3.0, 1.0, 1.0, 0.5]),
        ("inverse", [100 / 250, 100 / 100, 0.0, 100 / 50, 100 / 100]),
    ],
)
def test_class_weights_are_by_hand_or_inverse_to_the_share_of_the_pixels(job, chosen, expected):
    pixels = np.array([250, 100, 0, 50, 100])
    weights = class_weights(changed(job, class_weights=chosen), pixels, torch.device("cpu"))
    if expected is None:
        assert weights is None
        return
    assert weights is not None
    scale = 1.25 if chosen == "inverse" else 1.0  # so that the mean over the pixels is 1
    assert weights.tolist() == pytest.approx([scale * weight for weight in expected])


def stepped(job: Job) -> tuple[FCN, torch.Tensor]:
    """A net after the gradients of the first step, and what was counted."""
    torch.manual_seed(0)
    net = FCN(**job.model)
    shards = open_shards(job.shards)
    batches = list(loader(make_stream(job, shards, SINGLE), range(job.train.accumulation)))
    return net, backward(job, net, batches, 0, SINGLE, class_weights(job, shards.class_pixels, SINGLE.device))


def gradient_of(job: Job) -> torch.Tensor:
    net, _ = stepped(job)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
