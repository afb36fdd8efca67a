"""Worlds with any kind of actions: a network's units, and training in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from loop_helpers import actor_net, agent, same, weights
from stable_baselines3 import PPO
from user_world import Walk

from everloop.contract import Observation
from everloop.envs import SyncTaskVectorEnv, VectorFeedback
from everloop.loop import DQNLearner, Replay, SupervisedLearner, mean_return
from everloop.loop.actions import ActionUnits
from everloop.loop.sb3.on_policy import SB3Learner


def box(low: Any, high: Any) -> spaces.Box:
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


@pytest.mark.parametrize(
    ("space", "network", "u", "a"),
    [
        (spaces.Discrete(3, start=-1), spaces.Discrete(3), [0, 2], [-1, 1]),
        (
            spaces.MultiDiscrete([2, 3], start=[5, -1]),
            spaces.MultiDiscrete([2, 3]),
            [[0, 0], [1, 2]],
            [[5, -1], [6, 1]],
        ),
        (
            box([-100, 0], [100, 1]),
            box([-1, -1], [1, 1]),
            [[-1, 1], [0.5, 0]],
            [[-100, 1], [50, 0.5]],
        ),
        (box([-np.inf, 0], [4, 8]), box([-np.inf, -1], [4, 1]), [[3, 0]], [[3, 4]]),
    ],
    ids=str,
)
def test_a_network_counts_from_0_and_acts_from_minus_1_to_1(
    space: Any, network: Any, u: Any, a: Any
) -> None:
    units = ActionUnits(space)
    assert units.network == network
    assert not units.same
    u, a = np.array(u, network.dtype), np.array(a, space.dtype)
    np.testing.assert_array_equal(units.to_world(u), a)
    assert units.to_world(u).dtype == space.dtype
    np.testing.assert_array_equal(units.to_network(a), u)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3]), box([-1], [1])],
    ids=str,
)
def test_units_that_are_the_same_change_nothing(space: Any) -> None:
    units = ActionUnits(space)
    assert units.network is space
    a = np.stack([space.sample() for _ in range(3)])
    np.testing.assert_array_equal(units.to_world(units.to_network(a)), a)


def test_actions_are_clipped_to_the_bounds_of_the_world() -> None:
    units = ActionUnits(box([0, -np.inf], [10, 2]))
    found = units.to_world(np.array([[3.0, 9.0], [-2.0, -9.0]], np.float32))
    np.testing.assert_array_equal(found, [[10, 2], [0, -9]])


def chooser(space: Any) -> Any:
    """A vector of two copies, each of which refuses actions that are not in its space."""

    class Chooser(Walk):
        action_space = space

        def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
            assert action in space
            self.taken.append(action)
            return super().step(0)

        taken: list[Any] = []  # noqa: RUF012

    vector = SyncTaskVectorEnv([Chooser] * 2)
    return VectorFeedback(vector), Chooser.taken


SPACES = [
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 3]),
    spaces.MultiDiscrete([2, 5], start=[1, -1]),
    spaces.MultiBinary(3),
    box([-100, 0], [100, 1]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_ppo_learns_with_any_kind_of_actions(space: Any) -> None:
    """It trains, is evaluated and replays; every option is tried."""
    world, taken = chooser(space)
    torch.manual_seed(0)
    learner = SB3Learner(world, agent, PPO, {"n_steps": 16, "batch_size": 16}, device="cpu")
    learner.attach([Replay(capacity=8, batch_size=4)])
    before = weights(learner.module)
    learner.learn([0], 64)
    assert not same(weights(learner.module), before)
    assert np.isfinite(mean_return(learner, chooser(space)[0], 0, seed=0))
    batch = learner.rollout(chooser(space)[0], [0], 8, seed=0)
    found = learner.units.to_world(batch.action.numpy())  # type: ignore[union-attr]
    assert all(a in space for a in found.reshape(-1, *space.shape))
    tried = np.stack(taken)
    if isinstance(space, spaces.Box):
        assert (np.ptp(tried, 0) > 0.9 * (space.high - space.low)).all()
    else:
        lowest, highest = tried.min(0), tried.max(0)
        start = np.asarray(getattr(space, "start", 0))
        size = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec"}.get(type(space))
        options = getattr(space, size) if size else 2
        np.testing.assert_array_equal(lowest, start + 0 * lowest)
        np.testing.assert_array_equal(highest, start + options - 1 + 0 * lowest)


def test_dqn_learns_with_choices_that_start_anywhere() -> None:
    world, taken = chooser(spaces.Discrete(3, start=-1))
    learner = DQNLearner(
        world, actor_net, {"learning_starts": 8, "batch_size": 8, "buffer_size": 100}, device="cpu"
    )
    learner.learn([0], 64)
    assert set(map(int, taken)) == {-1, 0, 1}


def test_labels_must_count_from_0() -> None:
    world = chooser(spaces.Discrete(3, start=-1))[0]
    module = actor_net(world.single_observation_space, world.single_action_space)
    with pytest.raises(ValueError, match=r"Discrete\(3, start=-1\); labels and guesses must count"):
        SupervisedLearner(module, world)
