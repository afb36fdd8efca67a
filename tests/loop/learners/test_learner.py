"""A learner acts as it has trained; a rollout stores actions as they were sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loop_helpers import (
    agent,
    control_learner,
    off_policy_learner,
    off_policy_world,
    perturb,
    plant,
    recurrent_agent,
    stream,
)
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from torch import Tensor, nn

from everloop.contract import Output
from everloop.envs import TaskVectorWrapper
from everloop.loop import (
    Gaussian,
    Learner,
    SupervisedLearner,
    Training,
    diagonal_fisher,
    likelihood_for,
)
from everloop.loop.sb3.on_policy import SB3Learner


class Emitted(TaskVectorWrapper):
    """Records what the world shows: observations, and True where an episode begins."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.shown: list[tuple[Any, Any]] = []

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        self.shown.append((obs, np.ones(self.num_envs, np.bool_)))
        return obs, info

    def step(self, actions: Any) -> Any:
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        self.shown.append((obs, terminated | truncated))
        return obs, rewards, terminated, truncated, info


class OwnLSTM(nn.Module):
    """A user's actor-critic with an LSTM of its own, whose state is (h, c) side by side."""

    UNITS = 5

    def __init__(self, space: Any, actions: Any) -> None:
        super().__init__()
        self.names = sorted(space.spaces)
        inputs = sum(int(np.prod(space[name].shape)) for name in self.names)
        self.cell = nn.LSTMCell(inputs, self.UNITS)
        self.policy = nn.Linear(self.UNITS, likelihood_for(actions).size())
        self.critic = nn.Linear(self.UNITS, 1)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 2 * self.UNITS)

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> tuple[Output, Tensor]:
        x = torch.cat([obs[name].flatten(2) for name in self.names], -1)
        features = []
        for x_t, start_t in zip(x, start, strict=True):
            h, c = state.masked_fill(start_t[:, None], 0.0).chunk(2, -1)
            state = torch.cat(self.cell(x_t, (h, c)), -1)
            features.append(state[:, : self.UNITS])
        hidden = torch.stack(features)
        return Output(self.policy(hidden), self.critic(hidden)[..., 0]), state


def supervised(network: Any) -> Learner:
    world = Emitted(stream(4))
    module = network(world.single_observation_space, world.single_action_space)
    return SupervisedLearner(module, world, Training(), torch.optim.SGD(module.parameters(), 0.0))


STILL = {"learning_rate": 0.0}
LEARNERS = {
    "supervised": lambda: supervised(agent),
    "supervised with a memory": lambda: supervised(recurrent_agent),
    "ppo": lambda: control_learner(world=Emitted(plant()), parameters=STILL),
    "recurrent ppo": lambda: control_learner(True, Emitted(plant()), STILL),
    "recurrent ppo with an own lstm": lambda: SB3Learner(
        Emitted(plant()), OwnLSTM, RecurrentPPO, {"n_steps": 8, "batch_size": 16, **STILL}
    ),
    "dqn": lambda: off_policy_learner(False, Emitted(off_policy_world(False)), STILL),
    "sac": lambda: off_policy_learner(True, Emitted(off_policy_world(True)), STILL),
}


def rows(obs: Any) -> list[bytes]:
    """Each example's observation as one key, (R,), of arrays (R, ...)."""
    parts = [np.asarray(obs[name], np.float32) for name in sorted(obs)]
    return [b"".join(part[i].tobytes() for part in parts) for i in range(len(parts[0]))]


@pytest.mark.parametrize("kind", LEARNERS)
def test_acting_gives_what_was_trained(kind: str) -> None:
    """At learning rate 0, the outputs that losses are computed from are those of `act`."""
    torch.manual_seed(0)
    learner = LEARNERS[kind]()
    perturb(learner.module, seed=0)  # so that the actions differ
    trained: list[tuple[bytes, Any]] = []

    def record(module: Any, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():  # a pass that a loss is computed from
            obs = {name: x.flatten(0, 1).numpy() for name, x in inputs[0].items()}
            modes = learner.likelihood.mode(output[0].prediction.detach().flatten(0, 1))
            trained.extend(zip(rows(obs), learner.clip(modes.numpy()), strict=True))

    learner.module.register_forward_hook(record)
    learner.learn([0, 1], 64)
    acted: dict[bytes, Any] = {}
    state = learner.initial_state(4)
    for obs, start in learner.world.shown:  # type: ignore[attr-defined]
        actions, state = learner.act(obs, state, start)
        acted.update(zip(rows(obs), actions, strict=True))
    compared = [(action, acted[key]) for key, action in trained if key in acted]
    assert len(compared) >= 64  # a recurrent minibatch is padded with examples that no world showed
    ours, theirs = map(np.stack, zip(*compared, strict=True))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(np.unique(ours, axis=0)) > 1


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
