"""Strategies in algorithms of Stable-Baselines3 that a script creates itself."""

from __future__ import annotations

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from loop_helpers import distance, same, weights
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from torch import Tensor

from everloop.loop import ERACE, EWC, Batch, DERPlusPlus, Forward, LwF, Model, Replay, Strategy
from everloop.loop.sb3.attached import AttachedSB3, attach_sb3


class Drift(gym.Env[Any, Any]):
    """Random observations; episodes of five steps."""

    def __init__(self, actions: spaces.Space[Any], pair: bool = False) -> None:
        box = spaces.Box(-3, 3, (3,), np.float32)
        self.observation_space = spaces.Dict({"a": box, "b": box}) if pair else box
        self.action_space, self.time = actions, 0

    def _see(self) -> Any:
        drawn = self.np_random.normal(size=(2, 3)).clip(-3, 3).astype(np.float32)
        return {"a": drawn[0], "b": drawn[1]} if self._pair else drawn[0]

    @property
    def _pair(self) -> bool:
        return isinstance(self.observation_space, spaces.Dict)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._see(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self._see(), float(np.sum(action)), False, self.time == 5, {}


BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)


def on(**more: Any) -> dict[str, Any]:
    """Settings of a small on-policy algorithm; SB3 changes the dict of the policy."""
    small = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    return {"n_steps": 16, **small, **more}


def off(**more: Any) -> dict[str, Any]:
    small = on(learning_starts=8, batch_size=8, buffer_size=200, **more)
    return {name: value for name, value in small.items() if name != "n_steps"}


KINDS: dict[str, Any] = {
    "ppo": lambda: PPO("MlpPolicy", Drift(spaces.Discrete(3)), **on(batch_size=8, n_epochs=2)),
    "ppo box": lambda: PPO("MultiInputPolicy", Drift(BOX, True), **on(batch_size=8, n_epochs=2)),
    "ppo bits": lambda: PPO("MlpPolicy", Drift(spaces.MultiBinary(2)), **on(batch_size=8)),
    "ppo tokens": lambda: PPO("MlpPolicy", Drift(spaces.MultiDiscrete([3, 3])), **on(batch_size=8)),
    "a2c": lambda: A2C("MlpPolicy", Drift(spaces.Discrete(3)), **on()),
    "recurrent": lambda: RecurrentPPO(
        "MlpLstmPolicy",
        Drift(BOX),
        batch_size=8,
        n_epochs=2,
        n_steps=16,
        policy_kwargs={"net_arch": [8], "lstm_hidden_size": 8},
        seed=0,
        device="cpu",
    ),
    "dqn": lambda: DQN("MlpPolicy", Drift(spaces.Discrete(3)), **off(train_freq=4)),
    "sac": lambda: SAC("MlpPolicy", Drift(BOX), **off()),
}
ALL = pytest.mark.parametrize("kind", KINDS)
PLAIN = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "recurrent"])


@ALL
def test_watching_alone_changes_nothing(kind: str) -> None:
    """A memory is filled, but not replayed, and the gradient is clipped as SB3 does."""
    plain = KINDS[kind]()
    plain.learn(32)
    model = KINDS[kind]()
    norm = getattr(model, "max_grad_norm", None)
    replay = Replay(capacity=100)
    loop = attach_sb3([replay], model)
    model.learn(32, callback=loop.callback(0))
    assert distance(weights(model.policy), weights(plain.policy)) < 1e-6
    assert getattr(model, "max_grad_norm", None) == norm
    assert len(replay.memory) == 32
    buffer: Any = getattr(model, "rollout_buffer", None) or model.replay_buffer
    assert not {"get", "sample"} & set(vars(buffer))


@ALL
def test_outputs_and_likelihood_are_those_of_the_policy(kind: str) -> None:
    """Also in the middle of an episode of a recurrent policy."""
    model = KINDS[kind]()
    length = 4 if kind == "recurrent" else 1
    loop = attach_sb3([EWC()], model, sequence_length=length)
    model.learn(32, callback=kept(loop))
    batch = loop.kept[:3]  # type: ignore[attr-defined]
    assert batch.action is not None
    p = loop.outputs(batch)
    found = loop.likelihood.log_prob(p, batch.action)
    rows = {name: x.flatten(0, 1) for name, x in batch.obs.items()}
    obs: Any = rows.get("obs", rows)
    if kind == "dqn":
        expected = torch.log_softmax(model.q_net(obs) / 0.1, -1).gather(
            1, batch.action.reshape(-1, 1)
        )
    elif kind == "sac":
        mean, log_std, _ = model.actor.get_action_dist_params(obs)
        dist = model.actor.action_dist.proba_distribution(mean, log_std)
        scaled = torch.as_tensor(model.policy.scale_action(batch.action[0].numpy()))
        expected = dist.log_prob(scaled) - np.log(2.0) * 2  # the stretch from [-1, 1] to [-2, 2]
    elif kind == "recurrent":
        expected = torch.zeros(length, 3)
        steps = obs.unflatten(0, (length, 3))
        for i in range(3):
            states = 2 * (torch.zeros(1, 1, 8),)
            for t in range(length):
                start = batch.start[t, i : i + 1].float()
                dist, states = model.policy.get_distribution(steps[t, i : i + 1], states, start)
                expected[t, i] = dist.log_prob(batch.action[t, i : i + 1])
    else:
        expected = model.policy.evaluate_actions(obs, batch.action.flatten(0, 1))[1]
    assert torch.allclose(found.reshape(-1), expected.reshape(-1), atol=1e-4)


def kept(loop: Any) -> Any:
    """A callback that keeps examples of the task in `loop.kept`."""
    callback = loop.callback(0)
    end = callback._on_training_end

    def keep() -> None:
        loop.kept = loop.shown.sample(0, seed=0)[0]
        end()

    callback._on_training_end = keep
    return callback


class Pull(Strategy):
    """Adds the gradient of the mean output, as a loss or by hand."""

    def __init__(self, by_hand: bool) -> None:
        self.by_hand = by_hand

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Any:
        return None if fresh is None or self.by_hand else fresh.output.prediction.square().mean()

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        if self.by_hand:
            model.outputs(batch).square().mean().backward()  # type: ignore[no-untyped-call]


@PLAIN
def test_losses_of_fresh_minibatches_are_added(kind: str) -> None:
    ends: list[list[Tensor]] = []
    for by_hand in (False, True):
        model = KINDS[kind]()
        model.learn(32, callback=attach_sb3([Pull(by_hand)], model).callback(0))
        ends.append(weights(model.policy))
    plain = KINDS[kind]()
    plain.learn(32)
    assert distance(*ends) < 1e-6
    assert distance(weights(plain.policy), ends[0]) > 1e-6


@ALL
@pytest.mark.parametrize("make", [lambda: EWC(10.0), lambda: Replay(capacity=50, batch_size=4)])
def test_a_second_task_is_learned_with_strategies_and_its_state_survives(
    kind: str, make: Any
) -> None:
    model = KINDS[kind]()
    loop = attach_sb3([make()], model)
    for task in range(2):
        model.learn(32, callback=loop.callback(task))
    file = io.BytesIO()
    torch.save(loop.state_dict(), file)
    file.seek(0)
    attach_sb3([make()], KINDS[kind]()).load_state_dict(torch.load(file, weights_only=False))
    if isinstance(loop.strategies[0], EWC):
        assert max(float(P.max()) for P in loop.strategies[0].penalty.precision.values()) > 0
        before = loop.strategies[0].penalty.anchor
        assert set(before) == set(loop.weights())
    else:
        assert set(loop.strategies[0].past) == {0, 1}  # type: ignore[attr-defined]


def test_ewc_protects_the_first_tasks_policy() -> None:
    moved = []
    for strength in (0.0, 1e5):
        model = KINDS["ppo"]()
        loop = attach_sb3([EWC(strength), DERPlusPlus(0.0)], model)
        model.learn(32, callback=loop.callback(0))
        before = weights(model.policy.action_net)
        model.learn(64, callback=loop.callback(1))
        moved.append(distance(weights(model.policy.action_net), before))
    assert moved[1] < moved[0] / 2


def test_a_copy_of_a_policy_has_no_optimizer_and_no_environment() -> None:
    """The policy keeps its latest distribution, whose logits have a graph."""
    model = KINDS["ppo"]()
    loop = attach_sb3([LwF()], model)
    model.learn(32, callback=loop.callback(0))
    copied: Any = loop.frozen_copy()
    assert copied.optimizer is None
    assert model.policy.optimizer is loop.optimizer
    assert same(weights(copied), weights(model.policy))


def test_what_cannot_work_is_refused() -> None:
    ppo, recurrent = KINDS["ppo"](), KINDS["recurrent"]()
    with pytest.raises(ValueError, match="TD3 is not supported; use PPO, A2C"):
        attach_sb3([], TD3("MlpPolicy", Drift(BOX), device="cpu"))
    with pytest.raises(ValueError, match="gSDE"):
        attach_sb3([], PPO("MlpPolicy", Drift(BOX), use_sde=True, device="cpu"))
    with pytest.raises(ValueError, match="er_ace needs one class label"):
        attach_sb3([ERACE()], ppo)
    with pytest.raises(ValueError, match="lwf has a loss of the fresh batch"):
        attach_sb3([LwF()], recurrent)
    with pytest.raises(ValueError, match="sequence_length is 3; it must divide n_steps = 16"):
        attach_sb3([EWC()], recurrent, sequence_length=3)
    with pytest.raises(ValueError, match="sequence_length is 4; it must divide n_steps = 1"):
        attach_sb3([EWC()], ppo, sequence_length=4)
    loop = attach_sb3([EWC()], ppo)
    with pytest.raises(ValueError, match="the callback belongs to another algorithm"):
        KINDS["ppo"]().learn(16, callback=loop.callback(0))
    with pytest.raises(RuntimeError, match="without an observed batch"):
        ppo.learn(16)
    assert isinstance(loop, AttachedSB3)
