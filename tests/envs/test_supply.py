"""Every chain is served once and in order, whatever the copies switch to."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from everloop.envs.mixture import FIELDS, INDEX, ORIGIN, Presentations
from everloop.envs.supply import Supply

TASKS, COPIES = 3, 4


def draw_pass(tasks: tuple[int, ...], epoch: int) -> Presentations:
    """Five examples of each task, numbered by task, epoch and place."""
    rows = [100 * task + 10 * epoch + place for place in range(5) for task in tasks]
    drawn = np.zeros((FIELDS, len(rows)), dtype=np.int64)
    drawn[INDEX], drawn[ORIGIN] = rows, np.array(rows) // 100
    return drawn


SOURCES = st.sampled_from([(0,), (1,), (2,), (0, 2)])


@given(st.lists(st.tuples(st.integers(0, COPIES - 1), SOURCES), max_size=12))
def test_copies_that_switch_skip_and_repeat_no_example(
    switches: list[tuple[int, tuple[int, ...]]],
) -> None:
    """What a copy had not guessed yet goes back to its chain, and comes first there."""
    supply, everyone = Supply(COPIES, TASKS, draw_pass), np.ones(COPIES, dtype=np.bool_)
    supply.begin(everyone)
    names: dict[int, tuple[int, ...]] = {k: (k,) for k in range(TASKS)}
    guessed: dict[int, list[int]] = {}
    for copy, tasks in switches:
        for source, row in zip(supply.source, supply.pending[INDEX], strict=True):
            guessed.setdefault(int(source), []).append(int(row))
        assert not supply.is_leaked().any()
        assert all(t in names[s] for s, t in zip(supply.source, supply.task(), strict=True))
        supply.advance()
        number = supply.find(tasks)
        names[number] = tasks
        supply.source[copy] = number
        supply.begin(np.arange(COPIES) == copy)
        other = Supply(COPIES, TASKS, draw_pass)
        other.load_state_dict(supply.state_dict())
        assert np.array_equal(other.pending, supply.pending)
        supply = other
    for source, rows in guessed.items():
        chain = [row for epoch in range(20) for row in draw_pass(names[source], epoch)[INDEX]]
        showing = supply.pending[INDEX][supply.source == source].tolist()
        waiting = [int(one[INDEX]) for one in supply.state_dict()["returned"][source]]
        taken = [*rows, *showing, *waiting]
        assert len(set(rows)) == len(rows)
        assert sorted(taken) == sorted(chain[: len(taken)])
