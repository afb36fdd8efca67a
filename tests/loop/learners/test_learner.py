"""Actions of a rollout are stored as they were sampled, and clipped on their way to the world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loop_helpers import control_learner, plant
from numpy.typing import NDArray

from everloop.envs import TaskVectorWrapper
from everloop.loop import Gaussian, diagonal_fisher


class Recording(TaskVectorWrapper):
    """Records the actions that reach the world."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.received: list[NDArray[np.float32]] = []

    def step(self, actions: Any) -> Any:
        self.received.append(np.array(actions))
        return self.env.step(actions)


@pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])
def test_a_rollout_keeps_sampled_actions_and_the_world_gets_clipped_ones(recurrent: bool) -> None:
    learner, world = control_learner(recurrent), Recording(plant())
    batch = learner.rollout(world, [0], 8, seed=0)
    assert batch.action is not None
    received = torch.from_numpy(np.stack(world.received))
    by_example = batch.action.reshape(learner.sequence_length, -1, 4, 2)
    stored = by_example.transpose(0, 1).reshape(received.shape)
    assert float(stored.abs().max()) > 1.0
    torch.testing.assert_close(received, stored.clamp(-1.0, 1.0))


def test_the_empirical_fisher_of_a_policy_in_a_box_is_that_of_a_gaussian() -> None:
    """E ((x - m) / s^2)^2 = E 1 / s^2 for the bias of the mean, within 5 standard errors."""
    learner = control_learner()
    batch = learner.rollout(plant(50), [0], 20, seed=0)
    log_std = Gaussian(2).split(learner.outputs(batch).detach())[1]
    squares = (-2 * log_std[0]).exp()
    found = diagonal_fisher(learner, [batch])["head.linear.bias"][:2]
    errors = 2**0.5 * squares.square().mean(0).sqrt() / len(batch) ** 0.5
    assert bool(((found - squares.mean(0)).abs() < 5 * errors).all())
