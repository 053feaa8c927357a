"""pipeline/loading/sampler.py: which samples a step takes."""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.loading.sampler import BlockOrder, Buckets, Order

SAMPLINGS = ("epochs", "replacement")
seeds = st.integers(0, 2**63 - 1)
orders = st.builds(Order, num_samples=st.integers(1, 40), seed=seeds, sampling=st.sampled_from(SAMPLINGS))
batch_sizes = st.integers(1, 12)


# --- one sequence, cut into steps


@settings(deadline=None)
@given(orders, batch_sizes, st.integers(0, 30))
def test_a_step_takes_its_positions_of_the_one_sequence(order, batch_size, number):
    first = number * batch_size
    assert order.step(number, batch_size) == [order[first + place] for place in range(batch_size)]


@settings(deadline=None)
@given(orders, batch_sizes, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_steps_can_be_asked_for_in_any_order(order, batch_size, numbers):
    def afresh(number: int) -> list[int]:
        return Order(order.num_samples, order.seed, order.sampling).step(number, batch_size)

    assert [order.step(number, batch_size) for number in numbers] == [afresh(number) for number in numbers]


@settings(deadline=None)
@given(orders, st.integers(1, 10), st.integers(1, 10))
def test_the_batch_size_cuts_the_sequence_but_does_not_change_it(order, one, other):
    def sequence(batch_size: int) -> list[int]:
        return list(
            itertools.chain.from_iterable(order.step(n, batch_size) for n in range(120 // batch_size))
        )

    length = min(len(sequence(one)), len(sequence(other)))
    assert sequence(one)[:length] == sequence(other)[:length]


@settings(deadline=None)
@given(st.integers(1, 40), seeds)
def test_each_epoch_visits_each_sample_once(num_samples, seed):
    order = Order(num_samples, seed)
    for epoch in range(3):
        assert sorted(order.step(epoch, num_samples)) == list(range(num_samples))


@settings(deadline=None)
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


# --- batches of one size


sizes = st.lists(
    st.sampled_from([(3, 4), (4, 3), (4, 4), (5, 5), (6, 4), (9, 1)]), min_size=1, max_size=40
).map(np.array)


def buckets(sizes: np.ndarray, batch_size: int, seed: int = 5, sampling: str = "epochs") -> Buckets:
    return Buckets(sizes, batch_size, seed, sampling)


def rare(sizes: np.ndarray, batch_size: int) -> set[tuple[int, int]]:
    """The sizes that fewer than batch_size samples have, counted by hand."""
    return {size for size, count in Counter(map(tuple, sizes.tolist())).items() if count < batch_size}


@settings(max_examples=200, deadline=None)
@given(sizes, batch_sizes, seeds, st.sampled_from(SAMPLINGS), st.integers(0, 200))
def test_a_step_takes_images_of_one_size_or_rare_ones_together(sizes, batch_size, seed, sampling, number):
    step = buckets(sizes, batch_size, seed, sampling).step(number, batch_size)
    assert len(step) == batch_size
    found = {tuple(sizes[index].tolist()) for index in step}
    assert len(found) == 1 or found <= rare(sizes, batch_size)


@settings(max_examples=200, deadline=None)
@given(sizes, batch_sizes, seeds, st.sampled_from(SAMPLINGS), st.lists(st.integers(0, 99), max_size=5))
def test_a_step_of_buckets_does_not_depend_on_those_asked_for_before(
    sizes, batch_size, seed, sampling, numbers
):
    used = buckets(sizes, batch_size, seed, sampling)
    for number in numbers:
        afresh = buckets(sizes, batch_size, seed, sampling)
        assert used.step(number, batch_size) == afresh.step(number, batch_size)


@settings(max_examples=200, deadline=None)
@given(sizes, batch_sizes, seeds)
def test_by_epochs_no_sample_of_a_bucket_comes_twice_before_all_have_come(sizes, batch_size, seed):
    order = buckets(sizes, batch_size, seed)
    seen: Counter[int] = Counter()
    for number in range(3 * len(sizes) // batch_size + 3):
        for index in order.step(number, batch_size):
            seen[index] += 1
            bucket = np.flatnonzero(order.bucket_of == order.bucket_of[index])
            counts = [seen[other] for other in bucket]
            assert max(counts) - min(counts) <= 1


@settings(max_examples=200, deadline=None)
@given(sizes, batch_sizes, seeds, st.integers(1, 5))
def test_after_an_epoch_every_bucket_has_had_its_samples_but_for_less_than_a_batch(
    sizes, batch_size, seed, epochs
):
    order = buckets(sizes, batch_size, seed)
    counts = np.bincount(order.bucket_of)
    num_steps = sum(count * epochs // batch_size for count in counts.tolist())
    seen = Counter(int(order.bucket_of[i]) for n in range(num_steps) for i in order.step(n, batch_size))
    for bucket, count in enumerate(counts.tolist()):
        assert 0 <= count * epochs - seen[bucket] < batch_size


def test_with_replacement_buckets_give_every_sample_the_same_chance():
    sizes = np.array([(3, 4)] * 12 + [(4, 3)] * 6 + [(5, 5)] * 2)
    order = buckets(sizes, 4, sampling="replacement")
    draws = [index for number in range(20_000) for index in order.step(number, 4)]
    shares = np.bincount(draws, minlength=20) / len(draws)
    # The four of a step share a bucket, so by bucket: 12, 6 and 2 of 20 within 5 standard errors
    for members in (range(12), range(12, 18), range(18, 20)):
        share = len(members) / 20
        assert shares[members].sum() == pytest.approx(share, abs=5 * (share * (1 - share) / 20_000) ** 0.5)
        within = np.bincount([i - members[0] for i in draws if i in members], minlength=len(members))
        assert chisquare(within).pvalue > 0.001


def test_the_buckets_of_an_epoch_come_in_no_fixed_turn():
    sizes = np.array([(3, 4)] * 40 + [(4, 3)] * 40)
    order = buckets(sizes, 4)
    turns = [int(order.bucket_of[order.step(number, 4)[0]]) for number in range(40)]
    assert sorted(turns[:20]) == sorted(turns[20:]) == [0] * 10 + [1] * 10
    assert turns[:20] != turns[20:]
    assert turns[:20] != sorted(turns[:20])


# --- a million samples


def test_of_a_million_samples_any_step_is_found_without_those_before(monkeypatch):
    """It draws the rounds it needs and keeps no more than two; how long that takes is in docs/benchmarks.md."""
    order = Order(1_000_000, 1337)
    assert len(set(order.step(10**7, 64))) == 64
    drawn = []
    real = np.random.PCG64
    monkeypatch.setattr(np.random, "PCG64", lambda seed: drawn.append(seed) or real(seed))
    for number in range(10**7, 10**7 + 1000):
        order.step(number, 64)
    assert drawn == []
    order.step(0, 64)
    order.step(5 * 10**7, 64)
    assert len(order._rounds) == 2


# --- our own mistakes


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: Order(0, 1),
        lambda: Order(3, 1, "replace"),
        lambda: buckets(np.array([(3, 4)]), 2).step(0, 3),
    ],
)
def test_a_mistake_of_the_caller_is_found(mistake: Callable[[], object]):
    with pytest.raises(AssertionError):
        mistake()


# --- by blocks


def by_blocks(sizes: list[int], num_lanes: int, seed: int = 0) -> BlockOrder:
    first_sample = np.concatenate(([0], np.cumsum(sizes)))
    return BlockOrder(sum(sizes), seed, first_sample=first_sample, num_lanes=num_lanes)


block_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@settings(deadline=None)
@given(block_sizes, batch_sizes, seeds, st.integers(0, 3))
def test_by_blocks_every_epoch_has_each_sample_once(sizes, num_lanes, seed, epoch):
    order, num = by_blocks(sizes, num_lanes, seed), sum(sizes)
    assert sorted(order[epoch * num + offset] for offset in range(num)) == list(range(num))


@settings(deadline=None)
@given(block_sizes, batch_sizes, seeds, st.integers(0, 30))
def test_by_blocks_any_step_can_be_the_first(sizes, num_lanes, seed, number):
    taken = by_blocks(sizes, num_lanes, seed).step(number, num_lanes)
    earlier = by_blocks(sizes, num_lanes, seed)
    assert [earlier.step(step, num_lanes) for step in range(number + 1)][-1] == taken
    positions = np.arange(number * num_lanes, (number + 1) * num_lanes)
    assert by_blocks(sizes, num_lanes, seed).at(positions).tolist() == taken


@pytest.mark.parametrize("world", [1, 2, 3, 6, 12])
def test_each_worker_reads_blocks_of_its_own(world: int):
    """But for the blocks at the cuts between lanes, of which there is one less than lanes."""
    sizes, lanes = [5, 7, 9] * 80, 12
    order, num = by_blocks(sizes, lanes), sum(sizes)
    block_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in (0, 1, 5):
        positions = np.arange(epoch * num, (epoch + 1) * num)
        blocks = [set(block_of[order.at(positions[positions % world == rank])]) for rank in range(world)]
        assert len(sizes) <= sum(map(len, blocks)) <= len(sizes) + lanes - 1


def test_few_blocks_are_in_use_at_a_time():
    sizes, lanes = [8] * 400, 4
    order, num = by_blocks(sizes, lanes), 8 * 400
    blocks = np.repeat(np.arange(400), sizes)[order.at(np.arange(num))]
    first, last = (np.zeros(400, int) for _ in range(2))
    last[blocks] = np.arange(num)
    first[blocks[::-1]] = np.arange(num)[::-1]
    in_use = [((first <= place) & (last >= place)).sum() for place in range(0, num, 16)]
    assert max(in_use) <= 4 * lanes + lanes


def test_by_blocks_neighbours_of_a_shard_are_far_apart_and_epochs_differ():
    sizes = [8] * 400
    order, num = by_blocks(sizes, 16), 8 * 400
    place = np.argsort(order.at(np.arange(num)))
    # Of two positions drawn at random, one third of the epoch
    other_block = np.abs(place[: num - 8] - place[8:]).mean() / num
    assert 0.28 < other_block < 0.38
    same = (order.at(np.arange(num)) == order.at(np.arange(num) + num)).mean()
    assert same < 0.01
