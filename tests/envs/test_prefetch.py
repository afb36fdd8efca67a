"""`Prefetch`: threads prepare the next batches and change nothing about them."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs.chain import Chain
from everloop.envs.mixture import EPOCH, FIELDS, INDEX, KEY, Presentations
from everloop.envs.prefetch import Inputs, Prefetch

BATCH = 4


def draw_pass(key: int, epoch: int) -> Presentations:
    """Return a pass of 18 presentations, marked with `key`; 4 batches and a rest of 2."""
    presentations = np.zeros((FIELDS, 18), np.int64)
    presentations[INDEX] = np.arange(18)
    presentations[EPOCH] = epoch
    presentations[KEY] = key
    return presentations


def chain_of(key: int) -> Chain:
    return Chain(partial(draw_pass, key))


def prepare(presentations: Presentations) -> Inputs:
    """Return inputs (n, 3) that identify each presentation."""
    return presentations[[KEY, EPOCH, INDEX]].T


@pytest.fixture
def start() -> Iterator[Callable[..., Prefetch]]:
    """Make `Prefetch` objects that are closed when the test ends."""
    started: list[Prefetch] = []

    def begin(prepare: Callable[[Presentations], Inputs] = prepare, workers: int = 2) -> Prefetch:
        started.append(Prefetch(prepare, workers))
        return started[-1]

    yield begin
    for prefetch in started:
        prefetch.close()


@given(
    workers=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(0, 1), st.integers(0, BATCH)), max_size=20),
)
@settings(deadline=None)
def test_inputs_are_the_same_as_without_prefetching(
    workers: int, steps: list[tuple[int, int]]
) -> None:
    """Also when the task changes and when presentations are given back."""
    prefetch, chains = Prefetch(prepare, workers), [chain_of(0), chain_of(1)]
    for task, returned in steps:
        batch = chains[task].take(BATCH)
        inputs = prefetch.inputs(task, chains[task], batch)
        np.testing.assert_array_equal(inputs, prepare(batch))
        for presentation in batch.T[:returned]:
            chains[task].give_back(presentation)
    prefetch.close()


def test_each_worker_prepares_one_batch_ahead_and_only_once(
    start: Callable[..., Prefetch],
) -> None:
    firsts: SimpleQueue[int] = SimpleQueue()

    def record(presentations: Presentations) -> Inputs:
        firsts.put(int(presentations[INDEX, 0]))
        return prepare(presentations)

    prefetch, chain = start(record, workers=2), chain_of(0)
    prefetch.inputs(0, chain, chain.take(BATCH))
    assert sorted(firsts.get(timeout=60) for _ in range(3)) == [0, 4, 8]
    prefetch.inputs(0, chain, chain.take(BATCH))
    assert firsts.get(timeout=60) == 12
    for _ in range(2):
        prefetch.inputs(0, chain, chain.take(BATCH))
    with pytest.raises(Empty):  # the rest of the pass is less than a batch
        firsts.get(timeout=0.2)


def test_an_error_in_a_thread_reaches_the_caller(start: Callable[..., Prefetch]) -> None:
    def fail_in_threads(presentations: Presentations) -> Inputs:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("the file is broken")
        return prepare(presentations)

    prefetch, chain = start(fail_in_threads), chain_of(0)
    prefetch.inputs(0, chain, chain.take(BATCH))
    with pytest.raises(ValueError, match="the file is broken"):
        prefetch.inputs(0, chain, chain.take(BATCH))


def test_clear_forgets_what_was_prepared(start: Callable[..., Prefetch]) -> None:
    prefetch = start()
    chain, other = chain_of(0), chain_of(1)
    prefetch.inputs(0, chain, chain.take(BATCH))
    prefetch.clear()
    other.restore(chain.epoch, chain.cursor, [])
    batch = other.take(BATCH)  # the same task, pass and position as what was prepared
    np.testing.assert_array_equal(prefetch.inputs(0, other, batch), prepare(batch))


def test_close_ends_the_threads() -> None:
    before = set(threading.enumerate())
    prefetch, chain = Prefetch(prepare, 2), chain_of(0)
    prefetch.inputs(0, chain, chain.take(BATCH))
    assert set(threading.enumerate()) - before
    prefetch.close()
    assert not set(threading.enumerate()) - before
