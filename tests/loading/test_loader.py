"""pipeline/loading/loader.py: what each worker reads at each step, and what a batch holds."""

import itertools
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn import IGNORE_LABEL
from fcn.loss import pixel_cross_entropy
from fcn.model import FCN
from pipeline.config.training import Transforms
from pipeline.distributed.rank import Rank
from pipeline.errors import ShardError
from pipeline.loading.loader import Stream, loader
from pipeline.loading.transforms import apply, draw
from pipeline.shards.dataset import Batch, Dataset
from pipeline.shards.read import Shards
from tests.noise import noise, shards_of

MIXED = Transforms(mirror=True, jitter=2, scale=(0.5, 2.0), brightness=0.3)
seeds = st.integers(0, 2**63 - 1)
samplings = st.sampled_from(["epochs", "replacement"])


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Ten samples, all but two of a size of their own."""
    keys = [f"{number:02d}" for number in range(10)]
    return shards_of(tmp_path_factory.mktemp("noises") / "train", keys, noise)


def unwritten(num_samples: int, sizes: int = 3) -> Shards:
    """A manifest of so many samples in so many sizes, of which nothing is read."""
    sides = {side: [4 + (i * i) % sizes for i in range(num_samples)] for side in ("height", "width")}
    keys = {"key": [str(i) for i in range(num_samples)]}
    return Shards(Path("nowhere"), pa.table(keys | sides), {"classes": ["a", "b"]})


def padded(one: torch.Tensor, like: torch.Tensor, value: int) -> torch.Tensor:
    whole = torch.full_like(like, value)
    whole[..., : one.shape[-2], : one.shape[-1]] = one
    return whole


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.keys for batch in one] == [batch.keys for batch in other]
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.label, second.label)


# --- who takes what


splits = st.tuples(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)
)  # workers, accumulation, images at a time


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), seeds, samplings, splits, st.integers(0, 50), st.booleans())
def test_the_workers_together_take_the_one_sequence_and_each_as_much(
    num_samples, seed, sampling, split, step, size_buckets
):
    world, accumulation, images = split
    shards, batch_size = unwritten(num_samples), world * accumulation * images

    def stream(**split: int) -> Stream:
        return Stream(shards, batch_size, seed, sampling, size_buckets, **split)

    numbers = range(step * accumulation, (step + 1) * accumulation)
    workers = [stream(accumulation=accumulation, rank=rank, world_size=world) for rank in range(world)]
    shares = [[worker.positions(number) for worker in workers] for number in numbers]
    assert {len(share) for batch in shares for share in batch} == {images}  # nobody waits for anybody
    taken = sorted(position for batch in shares for share in batch for position in share)
    assert taken == list(stream().positions(step)) == list(range(step * batch_size, (step + 1) * batch_size))
    assert all(worker.keys(step) == stream().keys(step) for worker in workers)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    sampling=samplings,
    split=st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (6, 1), (1, 6)]),
    step=st.integers(0, 20),
    size_buckets=st.booleans(),
    mixed=st.booleans(),
)
def test_the_pixels_of_a_step_are_the_same_however_it_is_dealt_out(
    noises, seed, sampling, split, step, size_buckets, mixed
):
    world, accumulation = split
    transforms = MIXED if mixed else Transforms()
    whole = Stream(noises, 6, seed, sampling, size_buckets, transforms).read(step)
    for part in range(accumulation):
        for rank in range(world):
            mine = Stream(noises, 6, seed, sampling, size_buckets, transforms, accumulation, rank, world)
            batch = mine.read(step * accumulation + part)
            positions = range(part * 6 // accumulation + rank, (part + 1) * 6 // accumulation, world)
            assert torch.equal(batch.image, whole.image[list(positions)])
            assert torch.equal(batch.label, whole.label[list(positions)])
            assert batch.keys == tuple(whole.keys[position] for position in positions)


@pytest.mark.parametrize(
    "mistake", [{"world_size": 4}, {"world_size": 2, "rank": 2}, {"world_size": 2, "accumulation": 2}]
)
def test_a_mistake_of_the_caller_is_found(mistake: dict[str, int]):
    with pytest.raises(AssertionError):
        Stream(unwritten(3), 6, 1, **mistake)


# --- what a batch holds


@given(st.integers(0, 40), seeds)
@settings(max_examples=50, deadline=None)
def test_a_batch_pads_at_right_and_bottom_to_the_largest_of_the_step(noises, step, seed):
    batch = Stream(noises, 4, seed).read(step)
    samples = [Dataset(noises)[noises.keys.index(key)] for key in batch.keys]
    height, width = (max(sample.label.shape[side] for sample in samples) for side in (1, 2))
    assert batch.image.shape == (4, 3, height, width)
    assert batch.label.shape == (4, height, width)
    assert (batch.image.dtype, batch.label.dtype) == (torch.uint8, torch.uint8)
    for number, sample in enumerate(samples):
        assert torch.equal(batch.image[number], padded(sample.image[0], batch.image[number], 0))
        assert torch.equal(batch.label[number], padded(sample.label[0], batch.label[number], IGNORE_LABEL))


def test_what_is_drawn_for_an_image_depends_on_its_position_and_the_seed(noises):
    stream = Stream(noises, 4, 9, transforms=MIXED)
    for step in range(5):
        batch = stream.read(step)
        for number, key in enumerate(batch.keys):
            index = noises.keys.index(key)
            _, label, _ = Dataset(noises)[index]
            change = draw(MIXED, tuple(label.shape[1:]), 9, step * 4 + number)
            _, expected = apply(change, Dataset(noises)[index].image[0], label[0])
            assert torch.equal(batch.label[number], padded(expected, batch.label[number], IGNORE_LABEL))


def test_a_crop_makes_all_batches_one_size_and_pads_no_batch(noises):
    stream = Stream(noises, 4, 9, transforms=Transforms(crop=(5, 6)))
    assert {tuple(stream.read(step).label.shape) for step in range(10)} == {(4, 5, 6)}


def test_size_buckets_leave_nothing_to_pad_but_among_rare_sizes(tmp_path):
    def twins(key: str):
        return replace(noise(str(int(key) % 2)), key=key)

    shards = shards_of(tmp_path / "train", [f"{number}" for number in range(10)], twins)
    stream = Stream(shards, 4, 3, size_buckets=True)
    for step in range(10):
        batch = stream.read(step)
        for number, key in enumerate(batch.keys):
            assert torch.equal(batch.label[number], Dataset(shards)[shards.keys.index(key)].label[0])


# --- the loss of a padded batch


@pytest.fixture(scope="module")
def net() -> FCN:
    torch.manual_seed(0)
    options = {"width": 1 / 64, "fc6_kernel": 1, "dropout": 0.0, "pixels": "torchvision"}
    net = FCN(3, 32, "vgg16", "tight", **options).double()
    nn.init.normal_(net.score_fr.weight, std=1.0)
    return net


def loss_and_gradient(net: FCN, batches: list[Batch], num_images: int) -> tuple[float, torch.Tensor]:
    """Summed over batches, and divided by the number of images."""
    net.zero_grad()
    losses = [
        pixel_cross_entropy(net(batch.image), batch.label.long()) * len(batch.keys) / num_images
        for batch in batches
    ]
    sum(losses).backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert gradient.abs().max() > 0
    return sum(loss.item() for loss in losses), gradient


def one_by_one(batch: Batch) -> list[Batch]:
    return [
        Batch(batch.image[i : i + 1], batch.label[i : i + 1], batch.keys[i : i + 1])
        for i in range(len(batch.keys))
    ]


@pytest.mark.parametrize("transforms", [Transforms(), MIXED, Transforms(crop=(8, 8))])
@pytest.mark.parametrize("split", [(1, 6), (2, 1), (2, 3), (3, 1), (6, 1)])
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_dealt_out(net, noises, transforms, split):
    world, accumulation = split
    whole = Stream(noises, 6, 4, transforms=transforms).read(2)
    dealt = [
        Stream(
            noises, 6, 4, transforms=transforms, accumulation=accumulation, rank=rank, world_size=world
        ).read(2 * accumulation + part)
        for part in range(accumulation)
        for rank in range(world)
    ]
    loss, gradient = loss_and_gradient(net, [whole], 6)
    for batches in (dealt, one_by_one(whole)):
        other_loss, other_gradient = loss_and_gradient(net, batches, 6)
        assert other_loss == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-9, atol=1e-12)


def test_of_images_of_one_size_loss_and_gradient_are_those_of_the_bare_images(net, tmp_path):
    shards = shards_of(tmp_path / "train", ["0", "1", "2"], lambda key: replace(noise("7"), key=key))
    batch = Stream(shards, 3, 4).read(0)
    bare = [Dataset(shards)[shards.keys.index(key)] for key in batch.keys]
    loss, gradient = loss_and_gradient(net, [batch], 3)
    bare_loss, bare_gradient = loss_and_gradient(net, bare, 3)
    assert bare_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(bare_gradient, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("padding", ["tight", "reference"])
def test_padding_changes_scores_within_half_a_field_of_view_of_it_and_no_others(padding):
    """The trunk's field: 212 pixels to fc6 1x1, and the score of a pixel comes from cells up to 32 further on."""
    torch.manual_seed(1)
    options = {"width": 1 / 64, "fc6_kernel": 1, "dropout": 0.0, "pixels": "torchvision"}
    net = FCN(3, 32, "vgg16", padding, **options).double()
    nn.init.normal_(net.score_fr.weight, std=1.0)
    image = torch.randint(0, 256, (1, 3, 40, 400), dtype=torch.uint8)
    with torch.no_grad():
        bare, batched = net(image), net(padded(image, torch.empty(1, 3, 40, 432, dtype=torch.uint8), 0))
    differs = (bare - batched[..., :400]).abs().amax((0, 1, 2)) > 1e-9
    assert differs[-1]
    assert not differs[: 400 - 212 // 2 - 64].any()


# --- the loader


def test_the_loader_gives_the_batches_in_their_order(noises):
    stream, numbers = Stream(noises, 4, 5), [3, 1, 1, 0]
    assert_same(list(loader(stream, numbers)), [stream.read(number) for number in numbers])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_processes_that_read_ahead_change_nothing(noises, num_workers):
    """All batches are kept: none may be written over when its memory is used again."""
    stream = Stream(noises, 4, 5, transforms=MIXED)
    ahead = list(loader(stream, range(3, 33), num_workers))
    assert_same(ahead, [stream.read(number) for number in range(3, 33)])
    assert Counter(key for batch in ahead for key in batch.keys).total() == 120


def test_a_reader_that_dawdles_gets_the_same_batches(noises):
    stream = Stream(noises, 2, 5)
    for number, batch in zip(range(12), loader(stream, itertools.count(), 2), strict=False):
        if number % 4 == 0:
            torch.randn(300, 300) @ torch.randn(300, 300)
        assert_same([batch], [stream.read(number)])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_damaged_while_training_ends_it_with_one_sentence(tmp_path: Path, num_workers: int):
    shards = shards_of(tmp_path / "train", ["00", "01", "02", "03", "04"], noise)
    path = tmp_path / "train" / "shard-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    stream = Stream(shards, 1, 0)
    in_second_shard = next(n for n in itertools.count() if stream.keys(n) == [shards.keys[4]])
    damaged = next(n for n in itertools.count() if stream.keys(n) == [shards.keys[0]])
    given = loader(stream, [in_second_shard, damaged, damaged], num_workers)
    assert next(given).keys == (shards.keys[4],)
    with pytest.raises(ShardError, match=f"^{path}: {shards.keys[0]}.jpg .*`dvc repro -f shard`"):
        next(given)


# --- real processes


def in_a_process(rank: int, meeting: str, shards: Shards, world: int, folder: str) -> None:
    """Reads with processes ahead and meets the others at every step: a step too few anywhere would hang."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    worker = Rank(rank, world, torch.device("cpu"))
    stream = Stream(shards, 6, 1, transforms=MIXED, rank=rank, world_size=world)
    sums = []
    for batch in loader(stream, range(5, 25), num_workers=rank % 2):
        sums.append(worker.all_reduce(torch.stack([batch.image.sum(), batch.label.sum()])).tolist())
    dist.destroy_process_group()
    torch.save(sums, f"{folder}/{rank}")


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_real_workers_go_through_the_same_steps_whatever_their_number(noises, tmp_path, world):
    arguments = (str(tmp_path / "meeting"), noises, world, str(tmp_path))
    torch.multiprocessing.spawn(in_a_process, arguments, nprocs=world)
    alone = Stream(noises, 6, 1, transforms=MIXED)
    expected = [[int(b.image.sum()), int(b.label.sum())] for b in map(alone.read, range(5, 25))]
    for rank in range(world):
        assert torch.load(tmp_path / str(rank)) == expected


def test_the_largest_image_is_that_after_scaling_and_rounding(tmp_path):
    sizes = [(400, 500), (407, 491)]  # the first has the larger area, at most 312,500 pixels when scaled
    columns = dict(zip(("height", "width"), zip(*sizes, strict=True), strict=True))
    shards = Shards(tmp_path, pa.table({"key": ["a", "b"], **columns}), {"classes": ["a", "b"]})
    stream = Stream(shards, 1, seed=0, transforms=Transforms(scale=(0.8, 1.25)))
    largest = max(round(407 * scale) * round(491 * scale) for scale in np.linspace(1.24, 1.25, 1001))
    assert largest > 400 * 1.25 * 500 * 1.25
    assert math.prod(stream.max_size) >= largest


@pytest.mark.parametrize("size_buckets", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_largest_batch_is_as_large_as_any_that_comes(tmp_path, batch_size, size_buckets):
    """The tall and the wide image meet only where a step has several images of any size."""
    sizes = [(60, 4), (60, 4), (4, 50), (4, 50), (20, 20), (20, 20), (30, 6)]
    table = pa.table(
        {"key": [*"abcdefg"], **dict(zip(("height", "width"), zip(*sizes, strict=True), strict=True))}
    )
    shards = Shards(tmp_path, table, {"classes": ["a", "b"]})
    stream = Stream(shards, batch_size, seed=0, size_buckets=size_buckets)
    steps = [stream.order.step(step, batch_size) for step in range(200)]
    padded_sizes = [
        tuple(max(sides) for sides in zip(*(sizes[i] for i in step), strict=True)) for step in steps
    ]
    assert stream.max_size == max(padded_sizes, key=lambda size: size[0] * size[1])
