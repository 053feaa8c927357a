"""pipeline/stream.py: which rank sees which sample at which step, and what a batch holds."""

import io
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare

from fcn import IGNORE_LABEL
from pipeline.datasets import Sample
from pipeline.errors import ShardError
from pipeline.sharding import write_shards
from pipeline.shards import Shards, open_shards
from pipeline.stream import Batch, Order, Samples, collate, loader

SAMPLINGS = ("epochs", "replacement")
orders = st.builds(
    Order,
    num_samples=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
    sampling=st.sampled_from(SAMPLINGS),
)
sizes = st.integers(1, 6).flatmap(
    lambda world: st.tuples(st.just(world), st.integers(1, 5).map(world.__mul__))
)
starts = st.integers(0, 30)


def rank_batches(order: Order, batch_size: int, steps: range, world: int) -> list[list[list[int]]]:
    """By step, then by rank."""
    by_rank = [list(order.batches(batch_size, steps, rank, world)) for rank in range(world)]
    return [list(step) for step in zip(*by_rank, strict=True)]


# --- the sequence, for any number of workers


@given(orders, sizes, starts, st.integers(0, 8))
def test_the_ranks_together_see_the_one_sequence_whatever_their_number(order, size, start, num_steps):
    world, batch_size = size
    steps = range(start, start + num_steps)
    alone = list(order.batches(batch_size, steps))
    for whole, shares in zip(alone, rank_batches(order, batch_size, steps, world), strict=True):
        dealt_round = [index for turn in zip(*shares, strict=True) for index in turn]
        assert dealt_round == whole


@given(orders, sizes, starts)
def test_every_rank_has_as_many_samples_at_every_step(order, size, start):
    world, batch_size = size
    for shares in rank_batches(order, batch_size, range(start, start + 5), world):
        assert [len(share) for share in shares] == [batch_size // world] * world


@given(orders, sizes, starts)
def test_to_start_at_a_step_gives_the_tail_of_the_full_run(order, size, start):
    world, batch_size = size
    for rank in range(world):
        full = list(order.batches(batch_size, range(start + 4), rank, world))
        assert list(order.batches(batch_size, range(start, start + 4), rank, world)) == full[start:]


@given(orders, st.integers(1, 10), st.integers(1, 10))
def test_the_batch_size_cuts_the_sequence_but_does_not_change_it(order, one, other):
    def sequence(batch_size: int) -> list[int]:
        return list(itertools.chain.from_iterable(order.batches(batch_size, range(120 // batch_size))))

    length = min(len(sequence(one)), len(sequence(other)))
    assert sequence(one)[:length] == sequence(other)[:length]


@given(st.integers(1, 40), st.integers(0, 2**63 - 1), sizes)
def test_each_epoch_visits_each_sample_once(num_samples, seed, size):
    world, batch_size = size
    order = Order(num_samples, seed)
    num_steps = -(-3 * num_samples // batch_size)
    shares = rank_batches(order, batch_size, range(num_steps), world)
    seen = [index for step in shares for turn in zip(*step, strict=True) for index in turn]
    for epoch in range(3):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@given(orders, st.integers(0, 10**9))
def test_any_position_can_be_asked_for_alone(order, position):
    index = order[position]
    assert type(index) is int
    assert 0 <= index < order.num_samples
    assert Order(order.num_samples, order.seed, order.sampling)[position] == index


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_order_depends_on_the_seed_and_on_the_epoch(sampling: str):
    def epoch(seed: int, number: int) -> list[int]:
        order = Order(50, seed, sampling)
        return [order[position] for position in range(50 * number, 50 * (number + 1))]

    drawn = [epoch(seed, number) for seed in range(3) for number in range(3)]
    assert len({tuple(indices) for indices in drawn}) == 9


def test_the_order_is_that_of_the_results_so_far():
    """Recorded: another one, say of another numpy, would not resume runs nor repeat results."""
    assert [Order(10, 1337)[position] for position in range(20)] == RECORDED["epochs"]
    assert [Order(10, 1337, "replacement")[position] for position in range(20)] == RECORDED["replacement"]


RECORDED = {
    "epochs": [7, 6, 3, 5, 2, 8, 4, 9, 0, 1, 8, 5, 0, 7, 4, 3, 2, 6, 1, 9],
    "replacement": [5, 8, 7, 1, 5, 9, 3, 9, 2, 8, 2, 9, 1, 9, 9, 0, 9, 3, 6, 7],
}


# --- how even the draws are


@pytest.mark.parametrize("seed", [0, 1337])
def test_with_replacement_every_sample_is_as_likely_at_every_draw(seed: int):
    order = Order(20, seed, "replacement")
    draws = np.array([order[position] for position in range(20_000)])
    assert chisquare(np.bincount(draws, minlength=20)).pvalue > 0.001
    pairs = np.bincount(draws[:-1] * 20 + draws[1:], minlength=400)  # no draw knows the one before it
    assert chisquare(pairs).pvalue > 0.001


def test_with_replacement_some_samples_come_twice_before_others_come_once():
    """Of n draws with replacement 1 - 1/e of all n samples is expected to be among them."""
    order = Order(5000, 1337, "replacement")
    assert len({order[position] for position in range(5000)}) / 5000 == pytest.approx(0.632, abs=0.02)


@pytest.mark.parametrize("seed", [0, 1337])
def test_by_epochs_every_sample_is_as_likely_at_every_place(seed: int):
    order = Order(10, seed)
    places = np.array([[order[10 * epoch + place] for place in range(10)] for epoch in range(2000)])
    for place in range(10):
        assert chisquare(np.bincount(places[:, place], minlength=10)).pvalue > 0.001


# --- our own mistakes


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: Order(0, 1),
        lambda: Order(3, 1, "replace"),
        lambda: next(Order(3, 1).batches(5, range(1), 0, 2)),
    ],
)
def test_a_mistake_of_the_caller_is_found(mistake: Callable[[], object]):
    with pytest.raises(AssertionError):
        mistake()


# --- a sample


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
    return Sample(key, file.getvalue(), label)


def noise(key: str) -> Sample:
    """A photo and label of noise, of a size of the key's own."""
    random = np.random.default_rng(int(key))
    height, width = random.integers(3, 12, 2)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(file, "JPEG")
    return Sample(key, file.getvalue(), random.integers(0, 3, (height, width), np.uint8))


def shards_of(dest: Path, keys: list[str], load: Callable[[str], Sample]) -> Shards:
    write_shards(keys, load, dest, split="train", classes=["a", "b", "c"], samples_per_shard=4, seed=0)
    return open_shards(dest)


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


# --- a batch


def batch_of(height: int, width: int, key: str = "k") -> Batch:
    """One sample without a 0 in its image nor void in its label, so that padding shows."""
    image = torch.randint(1, 256, (1, 3, height, width), dtype=torch.uint8)
    label = torch.randint(0, 21, (1, height, width), dtype=torch.uint8)
    return Batch(image, label, (key,))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_a_batch_pads_at_right_and_bottom_images_with_black_and_labels_with_void(shapes):
    samples = [batch_of(height, width, str(number)) for number, (height, width) in enumerate(shapes)]
    batch = collate(samples)
    height, width = (max(side) for side in zip(*shapes, strict=True))
    assert batch.image.shape == (len(shapes), 3, height, width)
    assert batch.label.shape == (len(shapes), height, width)
    assert (batch.image.dtype, batch.label.dtype) == (torch.uint8, torch.uint8)
    assert batch.keys == tuple(map(str, range(len(shapes))))
    for number, (sample, (rows, columns)) in enumerate(zip(samples, shapes, strict=True)):
        assert torch.equal(batch.image[number, :, :rows, :columns], sample.image[0])
        assert torch.equal(batch.label[number, :rows, :columns], sample.label[0])
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[:rows, :columns] = False
        assert (batch.image[number][:, outside] == 0).all()
        assert (batch.label[number][outside] == IGNORE_LABEL).all()


def test_a_batch_of_batches_keeps_every_sample_in_order():
    pair = collate([batch_of(4, 3, "a"), batch_of(2, 5, "b")])
    batch = collate([pair, batch_of(1, 1, "c")])
    assert batch.keys == ("a", "b", "c")
    assert torch.equal(batch.image[:2], pair.image)


# --- the loader


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.keys for batch in one] == [batch.keys for batch in other]
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.label, second.label)


def test_the_loader_gives_the_batches_in_their_order(noises: Shards):
    batches = [[3, 1], [9], [1, 1, 0]]
    given = list(loader(noises, batches))
    assert [batch.keys for batch in given] == [
        tuple(noises.keys[index] for index in indices) for indices in batches
    ]
    assert_same(given, [collate([Samples(noises)[index] for index in indices]) for indices in batches])


def test_processes_that_read_ahead_change_nothing(noises: Shards):
    order = Order(len(noises), seed=5)

    def batches(num_workers: int) -> list[Batch]:
        return list(loader(noises, order.batches(4, range(3, 10)), num_workers))

    assert_same(batches(0), batches(2))
    assert Counter(key for batch in batches(0) for key in batch.keys).total() == 28


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_damaged_while_training_ends_it_with_one_sentence(tmp_path: Path, num_workers: int):
    shards = shards_of(tmp_path / "train", ["00", "01", "02", "03", "04"], noise)
    path = tmp_path / "train" / "shard-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    given = loader(shards, [[4], [0], [1]], num_workers)  # 4 is in the second shard
    assert next(given).keys == (shards.keys[4],)
    with pytest.raises(ShardError) as caught:
        next(given)
    assert str(caught.value) == (
        f"{path}: {shards.keys[0]}.jpg is not what the manifest recorded; "
        "run `dvc repro -f shard` to write it again"
    )
