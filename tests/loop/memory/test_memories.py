"""Memories in which classes or tasks have equal shares, the store beneath all memories, and
herding.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loop_helpers import vector_batch
from scipy.stats import chi2, chisquare

from everloop.loop import MEMORIES, Batch, Memory, herding
from everloop.loop.memory import ClassBalanced, Informative, Ring, Store, Uncertain, store
from everloop.loop.memory.grouped import Grouped

GROUPED = [ClassBalanced, Ring, Uncertain, Informative]
EVERY = pytest.mark.parametrize("kind", GROUPED, ids=lambda kind: kind.__name__)
Offers = Sequence[tuple[int, float]]

offers = st.lists(
    st.tuples(st.integers(0, 4), st.floats(0, 1)), max_size=50, unique_by=lambda offer: offer[1]
)
"""Groups and scores, no score twice."""
capacities, cuts, seeds = st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32)


def offer(
    memory: Memory, part: Offers, first: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offer the numbers from `first` on, one for each group and score."""
    groups, scores = np.array([g for g, _ in part], np.int64), np.array([s for _, s in part])
    kept, rows = memory.reserve(len(part), groups, scores)
    memory.write(rows, {"x": first + kept, "target": groups[kept][:, None]})
    return kept, rows


def fill(memory: Memory, told: Offers, cut: int = 50) -> None:
    """Offer all of `told`, `cut` at once."""
    for begin in range(0, len(told), cut):
        offer(memory, told[begin : begin + cut], begin)


def held(memory: Memory) -> dict[int, list[int]]:
    """The numbers that are stored of each group."""
    if not len(memory):
        return {}
    items = memory.read(np.arange(len(memory)))
    found: dict[int, list[int]] = {}
    for number, group in sorted(
        zip(items["x"].tolist(), items["target"][:, 0].tolist(), strict=True)
    ):
        found.setdefault(group, []).append(number)
    return found


def told_of(group: int, told: Offers) -> list[int]:
    return [i for i, (g, _) in enumerate(told) if g == group]


# shares


@EVERY
@settings(deadline=None, max_examples=60)
@given(told=offers, capacity=capacities, cut=cuts, seed=seeds)
def test_shares_are_as_equal_as_what_was_offered_allows(
    kind: type[Memory], told: Offers, capacity: int, cut: int, seed: int
) -> None:
    """A group that lost any, or was refused any, has at most one less than the largest; so a group
    within its share has all.
    """
    memory = kind(capacity, seed)
    for begin in range(0, len(told), cut):
        kept, rows = offer(memory, told[begin : begin + cut], begin)
        assert len(kept) == len(rows) == len(set(rows.tolist())) == len(set(kept.tolist()))
        assert set(rows.tolist()) <= set(range(capacity))
        now = held(memory)
        so_far = Counter(group for group, _ in told[: begin + cut])
        counts = {group: len(now.get(group, [])) for group in so_far}
        most, share = max(counts.values()), capacity / len(so_far)
        assert sum(counts.values()) == len(memory) == min(capacity, sum(so_far.values()))
        for group, offered in so_far.items():
            assert set(now.get(group, [])) <= set(told_of(group, told[: begin + cut]))
            assert counts[group] == offered or counts[group] >= most - 1
            assert counts[group] == offered or offered > math.floor(share)
        if min(so_far.values()) >= math.ceil(share):
            assert most - min(counts.values()) <= 1


@settings(deadline=None, max_examples=60)
@given(told=offers, capacity=capacities, cut=cuts, seed=seeds)
def test_a_ring_keeps_of_each_task_the_last_ones(
    told: Offers, capacity: int, cut: int, seed: int
) -> None:
    memory = Ring(capacity, seed)
    fill(memory, told, cut)
    for task, numbers in held(memory).items():
        assert numbers == told_of(task, told)[-len(numbers) :]


@settings(deadline=None, max_examples=200)
@given(
    batches=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=12),
    capacity=capacities,
    seed=seeds,
)
def test_a_ring_does_with_a_batch_what_it_does_one_by_one(
    batches: list[tuple[int, int]], capacity: int, seed: int
) -> None:
    whole, single = Ring(capacity, seed), Ring(capacity, seed)
    for task, count in batches:
        tasks = np.full(count, task)
        kept, rows = whole.reserve(count, tasks)
        expected = Grouped.reserve(single, count, tasks)
        assert list(zip(kept, rows, strict=True)) == list(zip(*expected, strict=True))
        assert str(whole.state_dict()) == str(single.state_dict())


@pytest.mark.parametrize("kind", [Uncertain, Informative])
@settings(deadline=None, max_examples=60)
@example(
    told=[(0, 0.9), (0, 0.8), (0, 0.7), (1, 0.5), (1, 0.4), (0, 0.1)], capacity=3, cut=1, seed=0
)  # 0 comes back, worse than ever
@given(told=offers, capacity=capacities, cut=cuts, seed=seeds)
def test_of_each_class_the_highest_scores_are_kept(
    kind: type[Memory], told: Offers, capacity: int, cut: int, seed: int
) -> None:
    memory = kind(capacity, seed)
    fill(memory, told, cut)
    for label, numbers in held(memory).items():
        ranked = sorted(told_of(label, told), key=lambda i: -told[i][1])
        assert numbers == sorted(ranked[: len(numbers)])


# chance

SEQUENCES: dict[str, tuple[int, list[int]]] = {
    "one class": (3, [0] * 12),
    "a third class after two that fill it": (8, [0] * 4 + [1] * 4 + [2]),
    "class after class": (7, [0] * 8 + [1] * 8 + [2] * 8),
    "in turn, with a share for each": (6, [0, 1, 2] * 6),
    "in turn, where shares cannot be equal": (4, [0, 1, 2] * 6),
    "a class that comes back": (7, [0] * 6 + [1] * 6 + [2] * 6 + [0] * 6),
    "a rare class": (5, ([0] * 5 + [1]) * 4),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_of_each_class_a_uniform_sample_of_its_offers_is_kept(name: str) -> None:
    """Sum of (observed - expected)^2 / variance, for draws without replacement, is chi-square with
    n - 1 degrees of freedom.
    """
    capacity, labels = SEQUENCES[name]
    runs, told = 800, np.array(labels)
    kept, shares = np.zeros((runs, len(told))), {}
    for seed in range(runs):
        memory = ClassBalanced(capacity, seed)
        fill(memory, [(label, 0.0) for label in labels])
        kept[seed, memory.read(np.arange(len(memory)))["x"]] = 1
    for label in set(labels):
        mine = kept[:, told == label]
        n, p = mine.shape[1], mine.mean(1)
        observed, expected, variance = mine.sum(0), p.sum(), (p * (1 - p)).sum()
        shares[label] = p.mean()
        if variance == 0:  # all of them are kept
            assert (mine == 1).all()
        else:
            statistic = ((observed - expected) ** 2).sum() / variance * (n - 1) / n
            assert chi2.sf(statistic, n - 1) > 1e-4, (label, observed / runs)


def test_which_of_two_largest_classes_loses_one_is_a_fair_coin() -> None:
    losers = Counter()
    for seed in range(800):
        memory = ClassBalanced(4, seed)
        fill(memory, [(label, 0.0) for label in (0, 0, 1, 1, 2)])
        losers[next(label for label in (0, 1) if len(held(memory)[label]) == 1)] += 1
    assert chisquare([losers[0], losers[1]]).pvalue > 1e-4


@EVERY
@settings(deadline=None, max_examples=40)
@given(told=offers, capacity=capacities, cut=cuts, seed=seeds)
def test_it_makes_no_difference_how_offers_are_batched(
    kind: type[Memory], told: Offers, capacity: int, cut: int, seed: int
) -> None:
    """One at a time or many at once: not only as likely, but the same."""
    single, batched = kind(capacity, seed), kind(capacity, seed)
    fill(single, told, 1)
    fill(batched, told, cut)
    assert held(single) == held(batched)
    assert single.draw(5).tolist() == batched.draw(5).tolist()


def test_the_seed_decides() -> None:
    told = [(i % 3, 0.0) for i in range(60)]
    found = []
    for seed in (1, 1, 2):
        memory = ClassBalanced(9, seed)
        fill(memory, told)
        found.append(held(memory))
    assert found[0] == found[1] != found[2]


# states


@EVERY
@settings(deadline=None, max_examples=30)
@given(before=offers, after=offers, capacity=capacities, seed=seeds)
def test_a_restored_state_goes_on_the_same(
    kind: type[Memory], before: Offers, after: Offers, capacity: int, seed: int
) -> None:
    memory, restored = kind(capacity, seed), kind(capacity, seed + 1)
    fill(memory, before)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=False))
    for both in (memory, restored):
        offer(both, after, len(before))
    assert held(memory) == held(restored)
    assert memory.draw(9).tolist() == restored.draw(9).tolist()


@EVERY
@settings(deadline=None, max_examples=30)
@given(before=offers, after=offers, capacity=capacities, seed=seeds)
def test_neither_a_saved_nor_a_loaded_state_changes_afterwards(
    kind: type[Memory], before: Offers, after: Offers, capacity: int, seed: int
) -> None:
    memory, again = kind(capacity, seed), kind(capacity, seed + 1)
    fill(memory, before)
    then, state = held(memory), memory.state_dict()
    again.load_state_dict(state)
    for used in (memory, again):
        offer(used, after, len(before))
    fresh = kind(capacity, seed + 2)
    fresh.load_state_dict(state)
    assert held(fresh) == then
    offer(fresh, after, len(before))
    assert held(fresh) == held(memory)


@pytest.mark.parametrize("kind", MEMORIES.values(), ids=MEMORIES)
def test_a_state_of_another_capacity_is_refused(kind: type[Memory]) -> None:
    with pytest.raises(ValueError, match=r"^the state's capacity is 4, allowed: 5$"):
        kind(5).load_state_dict(kind(4).state_dict())


@pytest.mark.parametrize("kind", MEMORIES.values(), ids=MEMORIES)
@pytest.mark.parametrize("capacity", [0, -2])
def test_a_memory_without_room_is_refused(kind: type[Memory], capacity: int) -> None:
    with pytest.raises(ValueError, match=f"^capacity is {capacity}, allowed: 1 or more$"):
        kind(capacity)


# the store

VALUES: dict[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]] = {
    "uint8": lambda n: np.repeat(n[:, None], 6, 1).reshape(-1, 2, 3).astype(np.uint8),
    "bool": lambda n: n % 2 == 0,
    "float32": lambda n: (n[:, None] / np.float32(3.0)).astype(np.float32),
    "int64": lambda n: n * 2**40,
}


@pytest.mark.parametrize("kind", MEMORIES.values(), ids=MEMORIES)
def test_what_lies_on_disk_is_what_would_lie_in_memory(
    kind: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, types, draws and states, over many writes; the memory on disk goes on from the
    other's state, and the other way.
    """

    def write(memory: Memory, first: int) -> None:
        numbers = np.arange(first, first + 10)
        kept, rows = memory.reserve(10, numbers % 3, np.sin(numbers))
        memory.write(rows, {name: value(numbers[kept]) for name, value in VALUES.items()})

    def filled(first: int, state: dict[str, Any] | None = None) -> Memory:
        memory = kind(7, seed=3)
        if state is not None:
            memory.load_state_dict(state)
        for begin in range(first, first + 40, 10):
            write(memory, begin)
        return memory

    inside = filled(0)
    further_inside = filled(40, inside.state_dict())
    monkeypatch.setattr(store, "IN_MEMORY", 6)
    outside = filled(0)
    further_outside = filled(40, inside.state_dict())
    monkeypatch.undo()
    back_inside = filled(40, outside.state_dict())
    rows = np.array([6, 0, 3, 3])
    for name in VALUES:
        assert isinstance(outside.items[name], np.memmap)
        assert isinstance(further_outside.items[name], np.memmap)
        assert not isinstance(back_inside.items[name], np.memmap)
        assert outside.items[name].dtype == outside.read(rows)[name].dtype == np.dtype(name)
        np.testing.assert_array_equal(outside.read(rows)[name], inside.read(rows)[name])
        np.testing.assert_array_equal(further_outside.items[name], further_inside.items[name])
        np.testing.assert_array_equal(back_inside.items[name], further_inside.items[name])
    assert outside.draw(20).tolist() == inside.draw(20).tolist()


def test_what_is_read_from_disk_is_a_copy_that_makes_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    batch, kept = vector_batch(4, 3, 2), Store(4)
    kept.write(np.array([2, 0, 3, 1]), batch.to_items())
    read = Batch.from_items(kept.read(np.array([2, 0, 3, 1])), torch.device("cpu"))
    assert torch.equal(read.obs["x"], batch.obs["x"])
    assert torch.equal(read.target, batch.target)  # type: ignore[arg-type]
    read.obs["x"].zero_()
    np.testing.assert_array_equal(kept.items["obs.x"][[2, 0, 3, 1], 0], batch.obs["x"][0].numpy())


def test_an_array_lies_on_disk_only_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 5 * 8)
    kept = Store(5)
    kept.write(
        np.array([0]),
        {"at": np.zeros(1), "above": np.zeros((1, 2)), "bytes": np.zeros((1, 40), np.bool_)},
    )
    assert {name: isinstance(value, np.memmap) for name, value in kept.items.items()} == {
        "at": False,
        "above": True,
        "bytes": True,
    }


@pytest.mark.parametrize("shape", [(6,), (1,), (2, 4)], ids=str)
def test_an_example_of_another_shape_is_refused_by_name(shape: tuple[int, ...]) -> None:
    """Also one that numpy would repeat until it fits."""
    kept = Store(5)
    kept.write(np.arange(2), {"obs.x": np.zeros((2, 4))})
    with pytest.raises(
        ValueError,
        match=(
            rf"^obs.x has the shape {re.escape(str(shape))}, allowed: \(4,\), as in the first "
            r"example stored$"
        ),
    ):
        kept.write(np.arange(2), {"obs.x": np.zeros((2, *shape))})


# the share of each class


def test_the_balance_is_each_classs_share_of_what_is_stored() -> None:
    memory = ClassBalanced(8)
    fill(memory, [(label, 0.0) for label in [4] * 2 + [1] * 5])
    assert memory.balance() == {1: 5 / 7, 4: 2 / 7}


def test_of_tags_those_tokens_count_that_have_one() -> None:
    memory, untagged = Ring(8), Ring(8)
    memory.write(
        memory.reserve(2, np.array([0, 1]))[1], {"target": np.array([[[0, 2, -1]], [[0, 0, -1]]])}
    )
    untagged.write(untagged.reserve(1, np.array([0]))[1], {"target": np.array([[[-1, -1]]])})
    assert memory.balance() == {0: 3 / 4, 2: 1 / 4}
    assert untagged.balance() == {}


def test_there_is_no_balance_where_there_are_no_classes() -> None:
    memory, empty = Ring(8), Ring(8)
    memory.write(
        memory.reserve(2, np.array([0, 1]))[1], {"target": np.zeros((2, 1, 3), np.float32)}
    )
    assert memory.balance() == empty.balance() == {}


# herding


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 12), size=st.integers(1, 4), data=st.data())
def test_each_pick_brings_the_mean_of_those_picked_nearest_to_the_mean_of_all(
    n: int, size: int, data: st.DataObject
) -> None:
    count, seed = data.draw(st.integers(1, n)), data.draw(seeds)
    features = torch.randn(
        n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    order = herding(features, count)
    picked: list[int] = []
    for pick in order.tolist():
        distances = {
            i: float((features[[*picked, i]].mean(0) - features.mean(0)).norm())
            for i in range(n)
            if i not in picked
        }
        assert distances[pick] <= min(distances.values()) + 1e-12
        picked.append(pick)
    assert order.dtype == torch.int64
    assert len(set(picked)) == count
    assert order.tolist() == herding(features, n)[:count].tolist(), "fewer are the first of more"


@pytest.mark.parametrize("count", [2, 5, 10, 30])
def test_the_mean_of_those_picked_is_nearer_than_that_of_any_of_many_random_choices(
    count: int,
) -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=g, dtype=torch.float64)

    def miss(rows: torch.Tensor) -> float:
        return float((features[rows].mean(0) - features.mean(0)).norm())

    by_chance = [miss(torch.randperm(60, generator=g)[:count]) for _ in range(50)]
    assert miss(herding(features, count)) < min(by_chance)


def test_examples_that_are_alike_are_each_picked_once() -> None:
    assert sorted(herding(torch.ones(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_number_of_exemplars_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"^count is {count}, allowed: 1 to 3$"):
        herding(torch.zeros(3, 2), count)
