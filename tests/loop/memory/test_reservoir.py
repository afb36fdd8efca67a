"""A reservoir is a uniform sample of everything offered, for every batch size."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from everloop.loop import Reservoir


def offer(memory: Reservoir, first: int, count: int) -> None:
    """Offer the numbers first ... first + count - 1."""
    kept, rows = memory.reserve(count)
    memory.write(rows, {"x": first + kept})


def fill(capacity: int, sizes: list[int], seed: int) -> Reservoir:
    memory, offered = Reservoir(capacity, seed), 0
    for size in sizes:
        offer(memory, offered, size)
        offered += size
    return memory


def contents(memory: Reservoir) -> npt.NDArray[Any]:
    return memory.read(np.arange(len(memory)))["x"]


@pytest.mark.parametrize("sizes", [[3], [3, 1], [3, 1, 9], [3, 1, 9, 7], [20], [1] * 20], ids=str)
def test_every_offer_is_kept_with_the_same_probability(sizes: list[int]) -> None:
    """A chi-square test of how often each offer is kept.

    The sum of (observed - expected)^2 / variance, for draws without replacement, follows the
    chi-square distribution with n - 1 degrees of freedom, for n offers.
    """
    capacity = 2
    offers = sum(sizes)
    runs = 1000
    counts = np.zeros(offers)
    for seed in range(runs):
        counts[contents(fill(capacity, sizes, seed))] += 1
    p = capacity / offers
    statistic = ((counts - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (offers - 1) / offers
    assert 1e-3 < chi2.sf(statistic, offers - 1) < 1 - 1e-3


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 2], [3, 1], [1, 1, 1, 1]], ids=str)
def test_batched_offers_have_the_distribution_of_algorithm_r(sizes: list[int]) -> None:
    """Algorithm R can place offers 2 and 3 in 2 rows in 12 ways, all equally likely."""
    exact: Counter[tuple[int, ...]] = Counter()
    for slots in product(range(3), range(4)):
        rows = [0, 1]
        for item, slot in zip((2, 3), slots, strict=True):
            if slot < 2:
                rows[slot] = item
        exact[tuple(rows)] += 1
    runs = 2000
    seen = Counter(tuple(contents(fill(2, sizes, seed)).tolist()) for seed in range(runs))
    assert set(seen) == set(exact)
    assert (
        chisquare([seen[k] for k in exact], [n / 12 * runs for n in exact.values()]).pvalue > 1e-3
    )


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@settings(deadline=None, max_examples=100)
@given(capacity=st.integers(1, 10), sizes=sizes, seed=st.integers(0, 2**32))
def test_no_row_is_reserved_twice_and_no_row_stays_empty(
    capacity: int, sizes: list[int], seed: int
) -> None:
    memory, offered = Reservoir(capacity, seed), 0
    for size in sizes:
        kept, rows = memory.reserve(size)
        assert len(kept) == len(rows) == len(set(rows.tolist())) == len(set(kept.tolist()))
        assert set(rows.tolist()) <= set(range(capacity))
        assert set(kept.tolist()) <= set(range(size))
        memory.write(rows, {"x": offered + kept})
        offered += size
        assert len(memory) == min(offered, capacity)
        if offered:
            held = contents(memory).tolist()
            assert len(set(held)) == len(held) == min(offered, capacity)
            assert set(held) <= set(range(offered))
        if 0 < offered <= capacity:
            assert contents(memory).tolist() == list(range(offered))


@settings(deadline=None, max_examples=30)
@given(before=sizes, after=sizes, seed=st.integers(0, 1000))
def test_a_restored_memory_continues_identically(
    before: list[int], after: list[int], seed: int
) -> None:
    memory = fill(4, before, seed)
    state = memory.state_dict()
    restored = Reservoir(4, seed + 1)
    restored.load_state_dict(state)
    for both in (memory, restored):
        for size in after:
            offer(both, both.offered, size)
    assert len(memory) == len(restored)
    if len(memory):
        assert contents(memory).tolist() == contents(restored).tolist()
        assert memory.draw(9).tolist() == restored.draw(9).tolist()


def test_later_writes_do_not_change_a_saved_state() -> None:
    memory = fill(2, [2], 0)
    state = memory.state_dict()
    memory.write(np.array([0, 1]), {"x": np.array([7, 8])})
    memory.draw(3)
    fresh = Reservoir(2, 1)
    fresh.load_state_dict(state)
    assert contents(fresh).tolist() == [0, 1]
    assert fresh.draw(9).tolist() == fill(2, [2], 0).draw(9).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32, np.int64])
def test_items_keep_their_dtype_and_values(dtype: Any) -> None:
    memory, value = Reservoir(5), np.arange(12).reshape(3, 2, 2).astype(dtype)
    kept, rows = memory.reserve(3)
    memory.write(rows, {"x": value[kept]})
    read = memory.read(np.array([2, 0]))["x"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, value[[2, 0]])
    assert memory.items["x"].shape == (5, 2, 2)


def test_arrays_are_allocated_once_and_read_as_copies() -> None:
    memory = fill(3, [2], 0)
    array = memory.items["x"]
    offer(memory, 2, 50)
    assert memory.items["x"] is array
    memory.read(np.array([0]))["x"][:] = -1
    assert -1 not in array


@pytest.mark.parametrize("wanted", [[1, 4], [4], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("rare", [False, True], ids=["common", "rare"])
def test_draws_are_uniform_over_the_rows_of_the_given_tasks(wanted: list[int], rare: bool) -> None:
    """Draws use rejection, or a search of all rows if rejection finds too few."""
    memory, tasks = Reservoir(6000 if rare else 60), np.arange(6).repeat(10)
    tasks = np.append(tasks, np.full(5940, 9)) if rare else tasks
    _, rows = memory.reserve(len(tasks))
    memory.write(rows, {"task": tasks})
    values, counts = np.unique(memory.draw(3000, np.array(wanted)), return_counts=True)
    assert (
        values.tolist()
        == np.flatnonzero(np.isin(tasks, wanted)).tolist()
        == memory.rows_of(np.array(wanted)).tolist()
    )
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "wanted", [[0], [-1], [-3, 5], [10**15], [-(2**63), 0, 2**63 - 1], [5, 4095, 4096]], ids=str
)
def test_task_ids_may_be_any_integers(wanted: list[int]) -> None:
    """Negative ids and the largest ids work, and allocate no table of that size."""
    memory = Reservoir(90)
    tasks = np.array([-(2**63), -3, -1, 0, 5, 4095, 4096, 10**15, 2**63 - 1]).repeat(10)
    memory.write(memory.reserve(90)[1], {"task": tasks})
    tracemalloc.start()
    drawn = memory.draw(600, np.array(wanted))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(tasks[drawn].tolist()) == set(wanted)
    assert len(set(drawn.tolist())) == 10 * len(wanted)
    assert peak < 2**20


def test_distinct_draws_are_uniform_and_never_repeat_a_row() -> None:
    memory = fill(8, [8], 0)
    drawn = [memory.draw_distinct(3) for _ in range(3000)]
    assert all(len(set(rows.tolist())) == 3 for rows in drawn)
    assert chisquare(np.bincount(np.concatenate(drawn), minlength=8)).pvalue > 1e-3
    assert sorted(memory.draw_distinct(20).tolist()) == list(range(8))
    assert Reservoir(5).draw_distinct(3).size == 0


def test_nothing_is_drawn_if_nothing_is_stored() -> None:
    memory = Reservoir(5)
    assert memory.draw(3).size == memory.draw(3, np.array([0])).size == 0
    memory.write(memory.reserve(2)[1], {"task": np.array([1, 1])})
    assert memory.draw(3, np.array([0])).size == memory.draw(3, np.array([], np.int64)).size == 0


def test_the_seed_determines_the_sample() -> None:
    assert (
        contents(fill(3, [50], 1)).tolist()
        == contents(fill(3, [50], 1)).tolist()
        != contents(fill(3, [50], 2)).tolist()
    )


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_1_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"capacity is {capacity}; it must be 1 or more"):
        Reservoir(capacity)
