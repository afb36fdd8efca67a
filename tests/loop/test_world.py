"""Resets to tasks, and checks that observations are finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import plant

from everloop.loop import NotFiniteError
from everloop.loop.world import check_finite, reset_to_tasks


@settings(deadline=None, max_examples=30)
@given(
    num_envs=st.integers(3, 7),
    tasks=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
def test_copies_are_assigned_to_the_tasks_in_turn(num_envs: int, tasks: list[int]) -> None:
    world = plant(num_envs)
    obs, of_copy = reset_to_tasks(world, tasks, seed=0)
    expected = [tasks[i % len(tasks)] for i in range(num_envs)]
    assert of_copy.tolist() == expected
    assert obs["cue"].argmax(-1).tolist() == expected
    _, _, _, _, info = world.step(np.zeros((num_envs, 2), np.float32))
    assert info["task"].tolist() == expected


def test_a_reset_to_one_task_equals_a_plain_reset() -> None:
    ours, _ = reset_to_tasks(plant(), [2], seed=5)
    theirs, _ = plant().reset(seed=5, options={"task": 2})
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_seed_determines_the_reset_to_several_tasks() -> None:
    a, b, c = (reset_to_tasks(plant(), [1, 0], seed)[0] for seed in (3, 3, 4))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["sensor_0"], c["sensor_0"])


def test_more_tasks_than_copies_are_refused() -> None:
    with pytest.raises(
        ValueError, match="there are 3 tasks but only 2 copies of the world; use at"
    ):
        reset_to_tasks(plant(2), [0, 1, 2], seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_observations_are_refused_with_name_and_step(bad: float) -> None:
    obs = {
        "good": np.zeros((2, 3), np.float32),
        "sensor_7": np.array([[0.0, 1.0], [bad, 2.0]], np.float32),
    }
    with pytest.raises(
        NotFiniteError, match=f"'sensor_7' holds {bad} at step 321; observations must be finite"
    ):
        check_finite(obs, 321)


def test_finite_observations_of_every_dtype_are_accepted() -> None:
    check_finite(
        {
            "a": np.zeros(3, np.float32),
            "b": np.full(3, 255, np.uint8),
            "c": np.zeros(2, np.int64),
            "d": np.ones(2, np.bool_),
        },
        0,
    )
