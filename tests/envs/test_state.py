"""A world that loads another's state continues as that one, through every wrapper and vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit, TransformReward

from everloop.contract import check_world
from everloop.envs import (
    ImageStreamVectorEnv,
    PlantEnv,
    PlantVectorEnv,
    SyncTaskVectorEnv,
    TaskVectorWrapper,
    VectorFeedback,
    make_vec,
)

SMALL: dict[str, Any] = {
    "num_tasks": 3,
    "observation_dim": 3,
    "latent_dim": 2,
    "action_dim": 2,
    "horizon": 7,
}


def single() -> gym.Env[Any, Any]:
    return TimeLimit(PlantEnv(**SMALL), 5)


WORLDS: dict[str, Callable[[], Any]] = {
    "beacons": lambda: make_vec("everloop/Beacons-v0", 4, axis="senses", horizon=7),
    "plant": lambda: PlantVectorEnv(4, task_cue=True, **SMALL),
    "plant with feedback": lambda: make_vec("everloop/Plant-v0", 4, feedback=True, **SMALL),
    "stream": lambda: ImageStreamVectorEnv(4, task_cue=True, label_space="within_task"),
    "stream with feedback": lambda: VectorFeedback(ImageStreamVectorEnv(4, episode_length=5)),
    "wrapped": lambda: TaskVectorWrapper(PlantVectorEnv(4, **SMALL)),
    "single copies with a time limit": lambda: SyncTaskVectorEnv([single] * 4),
    "registered single copies": lambda: SyncTaskVectorEnv(
        [lambda: gym.make("everloop/Plant-v0", **SMALL)] * 4
    ),
}


def play(world: Any, steps: int, seed: int) -> list[Any]:
    world.action_space.seed(seed)
    seen: list[Any] = []
    for step in range(steps):
        obs, rewards, _, ended, info = world.step(world.action_space.sample())
        seen += [*(obs[name] for name in sorted(obs)), rewards, ended, info["task"]]
        if step == 8:
            mask = np.array([True, False, True, False])
            seen.append(world.reset(options={"task": 0, "reset_mask": mask})[1]["task"])
    return seen


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", WORLDS)
def test_a_restored_world_continues_as_the_original(name: str) -> None:
    first, second = WORLDS[name](), WORLDS[name]()
    for world, seed in ((first, 3), (second, 4)):
        check_world(world)
        world.reset(seed=seed, options={"task": 1})
    before = play(first, 11, seed=0)
    state = first.state_dict()
    expected = play(first, 20, seed=1)
    second.load_state_dict(state)
    assert same(play(second, 20, seed=1), expected)
    second.load_state_dict(state)
    assert same(play(second, 20, seed=1), expected), "playing must not change the state"
    assert not same(before, expected[: len(before)])


@pytest.mark.parametrize("name", ["plant", "stream", "single copies with a time limit"])
def test_a_state_with_another_number_of_copies_is_refused(name: str) -> None:
    world = WORLDS[name]()
    world.reset(seed=0)
    state = world.state_dict()
    other = {"plant": PlantVectorEnv(3, **SMALL), "stream": ImageStreamVectorEnv(3)}.get(
        name, SyncTaskVectorEnv([single] * 3)
    )
    with pytest.raises(ValueError, match="the state has 4 copies; this world has 3"):
        other.load_state_dict(state)


def test_a_world_with_an_unknown_wrapper_has_no_state() -> None:
    world = SyncTaskVectorEnv([lambda: TransformReward(single(), lambda reward: 2 * reward)] * 2)
    world.reset(seed=0)
    assert world.state_dict() is None
