"""Observations of any space become a flat Dict of modalities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from everloop.contract import modality_kind
from everloop.envs import Tokens
from everloop.envs.modalities import Modalities


def shown(space: spaces.Space[Any], observation: Any) -> Any:
    """The only modality of an observation."""
    (value,) = Modalities(space)(observation).values()
    return value


def test_choices_are_one_hot() -> None:
    assert shown(spaces.Discrete(3, start=5), 6).tolist() == [0, 1, 0]
    both = spaces.MultiDiscrete([2, 3], start=[0, 1])
    assert shown(both, np.array([1, 3])).tolist() == [0, 1, 0, 0, 1]
    assert shown(spaces.MultiBinary(2), np.array([1, 0], np.int8)).tolist() == [1, 0]


def test_numbers_stay_as_they_are() -> None:
    box = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf]), dtype=np.float64)
    value = shown(box, np.array([0.5, 7.0]))
    assert value.tolist() == [0.5, 7.0]
    made = Modalities(box).space["observation"]
    assert (made.dtype, made.low.tolist(), made.high.tolist()) == (  # type: ignore[attr-defined]
        np.float32,
        [-1.0, 0.0],
        [1.0, np.inf],
    )
    assert shown(spaces.Box(-1, 1, (), np.float32), np.float32(0.5)).tolist() == [0.5]
    assert shown(spaces.Box(0, 9, (2, 2, 2), np.float32), np.arange(8.0)).tolist() == [*range(8)]


@pytest.mark.parametrize("shape", [(9, 8, 3), (3, 9, 8), (9, 8)])
def test_bytes_of_two_or_three_axes_are_pictures(shape: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    picture = space.sample()
    value = shown(space, picture)
    assert value.shape == (9, 8, 1 if len(shape) == 2 else 3)
    channels = picture if shape[0] == 3 else np.moveaxis(picture.reshape(9, 8, -1), -1, 0)
    assert np.array_equal(np.moveaxis(value, -1, 0), channels)
    box = Modalities(space).space["observation"]
    assert isinstance(box, spaces.Box)
    assert modality_kind("observation", box) == "picture"


def test_few_bytes_are_numbers() -> None:
    value = shown(spaces.Box(0, 255, (4,), np.uint8), np.array([0, 1, 2, 255], np.uint8))
    assert (value.dtype, value.tolist()) == (np.float32, [0, 1, 2, 255])


def test_the_characters_of_a_text_are_tokens() -> None:
    made = Modalities(spaces.Dict(say=spaces.Text(5, charset="abc")))
    assert made.space["say"] == Tokens(4, 5)
    assert made({"say": "cab"})["say"].tolist() == [3, 1, 2, 0, 0]


def test_nested_parts_become_flat_with_joined_names() -> None:
    space = spaces.Dict(
        arm=spaces.Dict({"left.x": spaces.Discrete(2)}),
        pair=spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,), np.float32))),
        cue=spaces.Discrete(2),
    )
    made = Modalities(space)
    observation = {"arm": {"left.x": 0}, "pair": (1, np.array([0.5])), "cue": 1}
    found = {name: x.tolist() for name, x in made(observation).items()}
    assert found == {
        "arm_left_x": [1, 0],
        "pair_0": [0, 1],
        "pair_1": [0.5],
        "seen_cue": [0, 1],
    }


def test_what_is_no_modality_is_named() -> None:
    with pytest.raises(ValueError, match="part 'a' of the observation is Graph"):
        Modalities(spaces.Dict(a=spaces.Graph(spaces.Box(0, 1, (1,), np.float32), None)))
    twice = spaces.Dict(a_0=spaces.Discrete(2), a=spaces.Tuple((spaces.Discrete(2),)))
    with pytest.raises(ValueError, match="two parts of the observation space get the name 'a_0'"):
        Modalities(twice)


leaf = st.sampled_from(
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 4]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2,), np.float64),
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Text(4),
    ]
)
nested = st.recursive(
    leaf,
    lambda inner: (
        st.dictionaries(st.sampled_from("xyz"), inner, min_size=1).map(spaces.Dict)
        | st.lists(inner, min_size=1, max_size=2).map(spaces.Tuple)
    ),
    max_leaves=4,
)


@given(nested)
def test_every_sample_of_a_space_is_in_the_space_of_its_modalities(space: Any) -> None:
    made = Modalities(space)
    space.seed(0)
    observation = space.sample()
    first, second = made(observation), made(observation)
    assert first in made.space
    assert not any(np.shares_memory(first[name], second[name]) for name in first)
