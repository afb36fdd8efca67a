"""Ready-made families: every task keeps the contract, and its physics or senses matter."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from everloop.envs import FAMILIES, check_task_env, make_vec

every_family = pytest.mark.parametrize("env_id", FAMILIES)


@every_family
def test_a_family_keeps_the_contract_of_worlds(env_id: str) -> None:
    check_task_env(gym.make(env_id))


@every_family
def test_every_attribute_that_a_task_sets_changes_its_play(env_id: str) -> None:
    made: Any = gym.make(env_id).unwrapped
    assert made.without_effect() == []


@every_family
def test_a_family_runs_in_a_vector(env_id: str) -> None:
    world = make_vec(env_id, 2, feedback=True)
    world.reset(seed=0)
    world.reset(options={"task": 1})
    world.action_space.seed(0)
    _, _, _, _, info = world.step(world.action_space.sample())
    assert info["task"].tolist() == [1, 1]


@pytest.mark.parametrize("env_id", [name for name in FAMILIES if "CartPole" in name])
def test_the_random_reference_is_the_mean_return_of_random_actions(env_id: str) -> None:
    """A third of the episodes that the reference was measured by; 5 standard errors."""
    env: Any = gym.make(env_id, disable_env_checker=True).unwrapped
    for task in env.tasks:
        if task.name == "drifting":
            continue  # its returns depend on the steps so far
        env.action_space.seed(1)
        env.reset(seed=1, options={"task": task.id})
        returns = []
        for _ in range(300):
            total, ended = 0, False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, ended = total + reward, terminated or truncated
            returns.append(total)
            env.reset()
        error = np.std(returns) / np.sqrt(len(returns))
        assert abs(np.mean(returns) - env.reference(task.id)[0]) < 5 * error
