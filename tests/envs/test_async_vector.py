"""Copies in processes of their own show the same as copies in one process, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from everloop.envs import AsyncTaskVectorEnv, make_vec

TASKS = [{"gravity": 9.8}, {"gravity": 20.0}]


def made(kind: Any, copies: int = 3) -> Any:
    return make_vec(
        "everloop/Sequence-v0", copies, vectorization=kind, env="CartPole-v1", tasks=TASKS
    )


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    worlds = made("sync"), made("async")
    yield worlds
    for world in worlds:
        world.close()


def assert_same(a: Any, b: Any) -> None:
    """Equal observations, rewards and infos."""
    if a is None:
        assert b is None
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple) or np.asarray(a).dtype.hasobject:
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert np.array_equal(a, b)


def test_they_show_the_same(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert isinstance(other, AsyncTaskVectorEnv)
    assert one.tasks == other.tasks
    assert one.metric(0) == other.metric(0)
    assert one.examples(0) is other.examples(0) is None
    mask = np.array([True, False, True])
    one.action_space.seed(0)
    for reset in ({"seed": 4}, {"options": {"task": 1, "reset_mask": mask}}):
        assert_same(one.reset(**reset), other.reset(**reset))
        for _ in range(40):
            actions = one.action_space.sample()
            assert_same(one.step(actions), other.step(actions))


def test_either_goes_on_from_the_state_of_the_other(pair: tuple[Any, Any]) -> None:
    one, other = pair
    one.action_space.seed(0)
    one.reset(seed=1)
    other.reset(seed=7)
    for first, second in ((one, other), (other, one)):
        for _ in range(15):
            first.step(one.action_space.sample())
        second.load_state_dict(first.state_dict())
        for _ in range(30):
            actions = one.action_space.sample()
            assert_same(first.step(actions), second.step(actions))
    lone = made("async", 1)
    with pytest.raises(ValueError, match="the state has 3 copies; this world has 1"):
        lone.load_state_dict(one.state_dict())
    lone.close()


def test_what_is_no_world_or_is_batched_already_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a world: it has no tasks"):
        AsyncTaskVectorEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(ValueError, match="is batched natively; leave out vectorization async"):
        make_vec("everloop/Plant-v0", 2, vectorization="async")
