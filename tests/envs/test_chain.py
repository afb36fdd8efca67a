"""`Chain`: endless passes over one task, each presentation taken once and in order."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from everloop.envs.chain import Chain
from everloop.envs.mixture import EPOCH, FIELDS, INDEX, Presentations


def draw_pass(epoch: int) -> Presentations:
    """Return a pass of 3 + epoch presentations, indexed in order."""
    presentations = np.zeros((FIELDS, 3 + epoch), np.int64)
    presentations[INDEX] = np.arange(3 + epoch)
    presentations[EPOCH] = epoch
    return presentations


ORDER = [(epoch, index) for epoch in range(20) for index in range(3 + epoch)]


def pairs(presentations: Presentations) -> list[tuple[int, int]]:
    return list(zip(presentations[EPOCH].tolist(), presentations[INDEX].tolist(), strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_batches_of_any_size_follow_the_order_of_the_passes(counts: list[int]) -> None:
    chain = Chain(draw_pass)
    taken: list[Any] = []
    for count in counts:
        batch = chain.take(count)
        assert batch.shape == (FIELDS, count)
        taken += pairs(batch)
    assert taken == ORDER[: len(taken)]


def test_one_batch_may_span_several_passes() -> None:
    chain = Chain(draw_pass)
    assert pairs(chain.take(10)) == ORDER[:10]  # passes of 3 and 4, and 3 of the next 5
    assert (chain.epoch, chain.cursor) == (2, 3)


def test_a_pass_is_drawn_only_when_it_is_needed() -> None:
    drawn = []

    def draw(epoch: int) -> Presentations:
        drawn.append(epoch)
        return draw_pass(epoch)

    chain = Chain(draw)
    assert drawn == []
    chain.take(3)
    assert drawn == [0]
    chain.take(1)
    assert drawn == [0, 1]


def test_returned_presentations_are_taken_first_and_once() -> None:
    chain = Chain(draw_pass)
    batch = chain.take(5)
    for position in (3, 1, 4):
        chain.give_back(batch[:, position])
    assert pairs(chain.take(2)) == [ORDER[3], ORDER[1]]
    assert pairs(chain.take(3)) == [ORDER[4], *ORDER[5:7]]


def test_taken_and_returned_presentations_are_copies() -> None:
    chain = Chain(draw_pass)
    chain.take(1)
    batch = chain.take(2)
    chain.give_back(batch[:, 0])
    batch[:] = -1
    assert pairs(chain.take(1)) == [ORDER[1]]
    assert pairs(chain.current) == ORDER[:3]


@given(before=st.integers(0, 30), returned=st.integers(0, 3), count=st.integers(1, 20))
def test_a_restored_chain_continues_as_the_original(before: int, returned: int, count: int) -> None:
    chain, other = Chain(draw_pass), Chain(draw_pass)
    batch = chain.take(before)
    for presentation in batch.T[:returned]:
        chain.give_back(presentation)
    other.restore(chain.epoch, chain.cursor, chain.returned)
    np.testing.assert_array_equal(other.take(count), chain.take(count))
