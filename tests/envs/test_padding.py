"""Tasks with different spaces share one that holds them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from everloop.envs.padding import Padding


def vector(size: int, low: float = -1.0, high: float = 1.0) -> spaces.Box:
    return spaces.Box(low, high, (size,), np.float32)


def padding(
    observed: list[dict[str, Any]], actions: list[spaces.Space[Any]] | None = None, pad: bool = True
) -> Padding:
    names = [f"task {i}" for i in range(len(observed))]
    acts = actions or [spaces.Discrete(2)] * len(observed)
    return Padding([spaces.Dict(part) for part in observed], acts, pad, names)


def test_equal_spaces_are_left_as_they_are() -> None:
    made = padding([{"x": vector(2)}] * 2, pad=False)
    seen = {"x": np.ones(2, np.float32)}
    assert made.observation(1, seen) is seen
    assert made.observation_space == spaces.Dict(x=vector(2))


def test_bounds_are_widened_without_being_asked() -> None:
    made = padding([{"x": vector(1, 2, 3)}, {"x": vector(1, 5, 7)}], pad=False)
    assert made.observation_space == spaces.Dict(x=vector(1, 2, 7))


def test_vectors_are_filled_up_with_zeros() -> None:
    made = padding([{"x": vector(1, 2, 3)}, {"x": vector(3, 5, 7)}])
    box = made.observation_space["x"]
    assert isinstance(box, spaces.Box)
    assert (box.low.tolist(), box.high.tolist()) == ([0, 0, 0], [7, 7, 7])
    assert made.observation(0, {"x": np.array([2.5], np.float32)})["x"].tolist() == [2.5, 0, 0]


def test_a_missing_modality_is_zero_and_marked() -> None:
    made = padding([{"x": vector(1)}, {"a": vector(2)}])
    assert sorted(made.observation_space.spaces) == ["a", "presence", "x"]
    shown = made.observation(0, {"x": np.array([0.5], np.float32)})
    assert {name: value.tolist() for name, value in shown.items()} == {
        "a": [0, 0],
        "x": [0.5],
        "presence": [0, 1],
    }
    assert shown in made.observation_space


def test_a_discrete_action_too_many_does_what_another_one_does() -> None:
    made = padding([{"x": vector(1)}] * 2, [spaces.Discrete(2, start=1), spaces.Discrete(5)])
    assert made.action_space == spaces.Discrete(5)
    assert [made.action(0, a) for a in range(5)] == [1, 2, 1, 2, 1]
    assert [made.action(1, a) for a in range(5)] == [0, 1, 2, 3, 4]


def test_box_actions_are_cut_off_and_stretched_to_the_bounds_of_the_task() -> None:
    made = padding([{"x": vector(1)}] * 2, [vector(1, 0, 4), vector(2)])
    assert made.action_space == vector(2)
    assert made.action(0, np.array([0.5, -1.0], np.float32)).tolist() == [3.0]
    same = padding([{"x": vector(1)}] * 2, [vector(1), vector(2)])
    assert same.action(0, np.array([0.5, -1.0], np.float32)).tolist() == [0.5]
    assert same.action(1, np.array([0.5, -1.0], np.float32)).tolist() == [0.5, -1.0]


def test_different_spaces_are_refused_unless_padding_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"the observation space of task task 1 is .* by pad"):
        padding([{"x": vector(1)}, {"x": vector(2)}], pad=False)
    with pytest.raises(ValueError, match="the action space of task task 1 is Discrete\\(3\\)"):
        padding([{"x": vector(1)}] * 2, [spaces.Discrete(2), spaces.Discrete(3)], pad=False)


def test_what_can_not_be_filled_up_is_refused() -> None:
    pictures = [{"x": spaces.Box(0, 255, (n, n, 3), np.uint8)} for n in (8, 9)]
    with pytest.raises(ValueError, match=r"modality 'x' is Box.* only vectors of one number of"):
        padding(pictures)
    with pytest.raises(ValueError, match="only Discrete ones or only Boxes can be filled up"):
        padding([{"x": vector(1)}] * 2, [spaces.Discrete(2), vector(1)])
