"""A learner acts as it has trained; a rollout stores actions as they were sampled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from loop_helpers import (
    DQN_PARAMETERS,
    PPO_PARAMETERS,
    SAC_PARAMETERS,
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
from stable_baselines3 import PPO
from torch import Tensor, nn

from everloop.agents import Agent, RunningNorm
from everloop.contract import Output
from everloop.envs import TaskVectorWrapper
from everloop.loop import (
    DQNLearner,
    Gaussian,
    Learner,
    Replay,
    SACLearner,
    SupervisedLearner,
    Training,
    diagonal_fisher,
    likelihood_for,
    mean_return,
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
    "ppo with normalised inputs": lambda: SB3Learner(
        Emitted(plant()),
        partial(normalised, value_head=True, normalize="running"),
        PPO,
        PPO_PARAMETERS
        | STILL
        | {"n_steps": 16},  # one rollout, since the next has other statistics
        device="cpu",
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


def normalised(observation_space: Any, action_space: Any = None, **parameters: Any) -> Agent:
    outputs = 1 if action_space is None else likelihood_for(action_space).size()
    return Agent(observation_space, outputs, **SMALL | parameters)


SMALL: dict[str, Any] = {"token_size": 8, "attention_heads": 2, "hidden_size": 6}
MODES = ("running", "first-task")
NORMALISED: dict[str, Callable[[Any], Learner]] = {
    "ppo": lambda net: SB3Learner(
        Emitted(plant()), partial(net, value_head=True), PPO, PPO_PARAMETERS, device="cpu"
    ),
    "recurrent ppo": lambda net: SB3Learner(
        Emitted(plant()),
        partial(net, value_head=True, recurrent=True),
        RecurrentPPO,
        PPO_PARAMETERS,
        device="cpu",
    ),
    "dqn": lambda net: DQNLearner(
        Emitted(off_policy_world(False)), net, DQN_PARAMETERS, device="cpu"
    ),
    "sac": lambda net: SACLearner(
        Emitted(off_policy_world(True)), net, net, SAC_PARAMETERS, device="cpu"
    ),
}


@pytest.mark.parametrize("kind", ["ppo", "recurrent ppo", "dqn", "sac"])
@pytest.mark.parametrize("normalize", MODES)
def test_statistics_are_those_of_the_training_data_each_example_once(
    kind: str, normalize: str
) -> None:
    """Of all of it, or of the first phase; in every network; whatever else the learner does."""
    learner = NORMALISED[kind](partial(normalised, normalize=normalize))
    world: Any = learner.world
    evaluation = off_policy_world(kind != "dqn")
    learner.attach([Replay(strength=1.0, capacity=16, batch_size=4)])
    learner.learn([0], 32)
    # each phase shows one observation after its last step, which is not learned from
    first = [obs["sensor_0"] for obs, _ in world.shown[:8]]
    learner.rollout(evaluation, [1], 8, seed=0)
    mean_return(learner, evaluation, 1, seed=0)
    learner.learn([1], 32)
    second = [obs["sensor_0"] for obs, _ in world.shown[-9:-1]]
    seen = np.concatenate(first + (second if normalize == "running" else []))
    norms = {
        name: layer
        for name, layer in learner.networks.named_modules()
        if isinstance(layer, RunningNorm) and "sensor__0" in name
    }
    assert len(norms) == {"dqn": 2, "sac": 5}.get(kind, 1)
    for norm in norms.values():
        assert norm.count == len(seen)
        np.testing.assert_allclose(norm.running_mean, seen.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_var, seen.var(0), rtol=1e-4, atol=1e-5)


class Numbers(Emitted):
    """Shows images as vectors of numbers far from 0."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.single_observation_space = spaces.Dict({"x": spaces.Box(1000.0, 1255.0, (64,))})

    def _shown(self, obs: Any) -> Any:
        return {"x": 1000 + obs["image"].reshape(self.num_envs, 64).astype(np.float32)}

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return self._shown(obs), info

    def step(self, actions: Any) -> Any:
        obs, *rest = super().step(actions)
        return self._shown(obs), *rest


def test_the_statistics_of_a_stream_are_those_of_its_batches() -> None:
    """However many updates each batch has, and however strategies use the network."""
    world = Numbers(stream(8))
    net = normalised(world.single_observation_space, world.single_action_space, normalize="running")
    learner = SupervisedLearner(net, world, Training(updates_per_batch=2))
    learner.attach([Replay(strength=1.0, capacity=16, batch_size=4)])
    learner.learn([0], 80)
    learner.rollout(Numbers(stream(8)), [1], 8, seed=0)
    mean_return(learner, Numbers(stream(8, split="test")), 1, seed=0)
    (norm,) = [layer for layer in net.modules() if isinstance(layer, RunningNorm)]
    # the last of the shown images is not learned from, and the first was shown before `begin`
    images = np.concatenate([obs["image"] for obs, _ in world.shown[:-1]]).reshape(-1, 64)
    assert norm.count == len(images) == 80
    np.testing.assert_allclose(norm.running_mean, 1000 + images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, images.var(0), rtol=1e-2, atol=1e-2)
