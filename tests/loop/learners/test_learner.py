"""What any learner does when it acts is what it has trained."""

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
from sb3_contrib import RecurrentPPO
from torch import Tensor, nn

from everloop.contract import Output
from everloop.envs import TaskVectorWrapper
from everloop.loop import Learner, SupervisedLearner, Training, likelihood_for
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
            trained.extend(zip(rows(obs), learner.units.to_world(modes.numpy()), strict=True))

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
