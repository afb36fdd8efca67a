"""What the loop asks of a world: tasks in turn, and finite numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import plant

from everloop.loop import NotFiniteError
from everloop.loop.world import check_finite, play


@settings(deadline=None, max_examples=30)
@given(
    num_envs=st.integers(3, 7),
    tasks=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
def test_copies_play_the_tasks_in_turn(num_envs: int, tasks: list[int]) -> None:
    world = plant(num_envs)
    obs, played = play(world, tasks, seed=0)
    expected = [tasks[i % len(tasks)] for i in range(num_envs)]
    assert played.tolist() == expected
    assert obs["cue"].argmax(-1).tolist() == expected
    _, _, _, _, info = world.step(np.zeros((num_envs, 2), np.float32))
    assert info["task"].tolist() == expected


def test_one_task_is_a_plain_reset_to_it() -> None:
    (ours, _), (theirs, _) = play(plant(), [2], seed=5), plant().reset(seed=5, options={"task": 2})
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_seed_decides_for_several_tasks_too() -> None:
    a, b, c = (play(plant(), [1, 0], seed)[0] for seed in (3, 3, 4))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["sensor_0"], c["sensor_0"])


def test_every_task_is_played_even_by_fewer_copies_than_tasks() -> None:
    """Or the caller is told that it cannot be."""
    with pytest.raises(ValueError, match="2"):
        play(plant(2), [0, 1, 2], seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_named_with_its_modality_and_step(bad: float) -> None:
    obs = {
        "good": np.zeros((2, 3), np.float32),
        "sensor_7": np.array([[0.0, 1.0], [bad, 2.0]], np.float32),
    }
    with pytest.raises(NotFiniteError, match=f"'sensor_7' holds {bad} at step 321"):
        check_finite(obs, 321)


def test_finite_numbers_of_every_kind_pass() -> None:
    check_finite(
        {
            "a": np.zeros(3, np.float32),
            "b": np.full(3, 255, np.uint8),
            "c": np.zeros(2, np.int64),
            "d": np.ones(2, np.bool_),
        },
        0,
    )
