"""PPO and RecurrentPPO with our networks: inputs, actions, batches for strategies, training."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from loop_helpers import (
    agent,
    control_learner,
    image_stream,
    plant,
    recurrent_agent,
    same,
    weights,
)
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, PPO
from stub_helpers import NotANumber
from torch import Tensor

from everloop.envs import SyncTaskVectorEnv, Task, TaskEnv
from everloop.loop import Batch, Learner, NotFiniteError, Strategy, mean_return
from everloop.loop.sb3.on_policy import SB3Learner

KINDS = pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])


@KINDS
def test_training_evaluates_minibatches_like_the_collection_did(recurrent: bool) -> None:
    """At learning rate 0 the likelihood ratio is 1 and the values are the same."""
    learner = control_learner(recurrent, parameters={"learning_rate": 0.0, "batch_size": 8})
    learner.learn([0, 1], 96)  # three rollouts; the last one starts within episodes
    buffer = learner.model.rollout_buffer
    evaluated, padded = 0, 0
    starts_within, states_carried_over = 0, 0
    for data in buffer.get(8):
        with torch.no_grad():
            if recurrent:
                mask = data.mask > 0.5
                values, log_prob, entropy = learner.policy.evaluate_actions(
                    data.observations, data.actions, data.lstm_states, data.episode_starts
                )
                starts_within += int((data.episode_starts[mask] > 0).sum())
                states = data.lstm_states.pi[0][0]
                states_carried_over += int((states.abs().sum(-1) > 0).sum())
            else:
                mask = torch.ones(len(data.actions), dtype=torch.bool)
                values, log_prob, entropy = learner.policy.evaluate_actions(
                    data.observations, data.actions
                )
        torch.testing.assert_close(
            values.flatten()[mask], data.old_values[mask], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            torch.exp(log_prob - data.old_log_prob)[mask],
            torch.ones(int(mask.sum())),
            rtol=0,
            atol=1e-4,
        )
        assert entropy.shape == log_prob.shape
        evaluated += int(mask.sum())
        padded += int((~mask).sum())
    assert evaluated == 32
    if recurrent:
        assert min(padded, starts_within, states_carried_over) > 0


@KINDS
def test_sb3_predicts_the_same_actions_as_the_learner(recurrent: bool) -> None:
    """`model.predict` equals `learner.act`, across episodes and at the limits of the actions."""
    learner, world = control_learner(recurrent), plant(3, horizon=4)
    with torch.no_grad():
        for p in learner.module.parameters():
            p.mul_(3.0)  # so that some actions reach the limits
    obs, _ = world.reset(seed=0)
    state, lstm = learner.module.initial_state(3), None  # type: ignore[operator]
    start, reached = np.ones(3, np.bool_), False
    for _ in range(7):
        ours, state = learner.act(obs, state, start)
        theirs, lstm = learner.model.predict(
            obs, state=lstm, episode_start=start, deterministic=True
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        reached |= bool((np.abs(ours) == 1.0).any())
        assert np.abs(ours).max() <= 1.0
        obs, _, terminated, truncated, _ = world.step(ours)
        start = terminated | truncated
    assert reached


@KINDS
def test_policies_sample_from_the_learners_likelihood(recurrent: bool) -> None:
    learner = control_learner(recurrent)
    obs = {name: torch.from_numpy(value) for name, value in plant(4).reset(seed=0)[0].items()}
    torch.manual_seed(0)
    with torch.no_grad():
        if recurrent:
            zeros = torch.zeros(1, 4, 6)
            actions, values, log_prob, _ = learner.policy(
                obs, RNNStates((zeros, zeros), (zeros, zeros)), torch.ones(4)
            )
        else:
            actions, values, log_prob = learner.policy(obs)
        output, _ = learner.module(
            {n: x[None] for n, x in obs.items()},
            torch.zeros(4, 6),
            torch.ones(1, 4, dtype=torch.bool),
        )
    torch.manual_seed(0)
    torch.testing.assert_close(actions, learner.likelihood.sample(output.prediction[0]))
    torch.testing.assert_close(log_prob, learner.likelihood.log_prob(output.prediction[0], actions))
    torch.testing.assert_close(values.flatten(), output.value[0])


class BufferRecorder(Strategy):
    """Records each observed batch with a copy of its rollout buffer, and each minibatch."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.buffers: list[dict[str, Any]] = []
        self.minibatches: list[Batch] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        assert isinstance(learner, SB3Learner)
        buffer: Any = learner.model.rollout_buffer
        self.batches.append(
            Batch.from_items({k: v.copy() for k, v in batch.to_items().items()}, learner.device)
        )
        obs = {name: value.copy() for name, value in buffer.observations.items()}
        self.buffers.append(
            {"obs": obs, "actions": buffer.actions.copy(), "starts": buffer.episode_starts.copy()}
        )

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        self.minibatches.append(batch)


@pytest.mark.parametrize("length", [1, 2, 8])
@KINDS
def test_strategies_observe_every_step_once_and_in_order(recurrent: bool, length: int) -> None:
    learner, recorder = control_learner(recurrent, sequence_length=length), BufferRecorder()
    learner.attach([recorder])
    learner.learn([2, 0], 64)
    assert len(recorder.batches) == 2
    for batch, buffer in zip(recorder.batches, recorder.buffers, strict=True):
        assert (batch.length, len(batch)) == (length, 32 // length)
        assert batch.action is not None
        assert batch.task is not None
        assert buffer["starts"][1:].any()
        for s in range(8 // length):
            steps = slice(s * length, (s + 1) * length)
            for b in range(4):
                e = 4 * s + b
                for name in buffer["obs"]:
                    np.testing.assert_array_equal(
                        batch.obs[name][:, e], buffer["obs"][name][steps, b]
                    )
                np.testing.assert_array_equal(batch.action[:, e], buffer["actions"][steps, b])
                assert batch.start[:, e].tolist() == [True, *(buffer["starts"][steps, b][1:] > 0)]
                assert int(batch.task[e]) == [2, 0][b % 2]
                assert batch.obs["cue"][:, e].argmax(-1).tolist() == [[2, 0][b % 2]] * length


@KINDS
def test_minibatches_contain_only_steps_of_the_rollout(recurrent: bool) -> None:
    learner, recorder = control_learner(recurrent), BufferRecorder()
    learner.attach([recorder])
    learner.learn([0], 32)
    rollout = {row.tobytes() for row in recorder.buffers[0]["obs"]["sensor_0"].reshape(32, -1)}
    assert len(recorder.minibatches) == 4
    for batch in recorder.minibatches:
        assert batch.length == learner.sequence_length
        shown = batch.obs["sensor_0"].flatten(0, 1)
        assert {row.numpy().tobytes() for row in shown} <= rollout
        assert batch.action is not None
        assert len(shown) == len(batch.action.flatten(0, 1)) == 16


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 8, 3), (8, 10, 9)], ids=str)
@KINDS
def test_networks_get_images_as_the_world_shows_them(
    recurrent: bool, shape: tuple[int, int, int]
) -> None:
    """Rollouts, training and observed batches have the same shape, although SB3 adds an axis."""
    world = image_stream(*shape)
    learner, recorder = control_learner(recurrent, world), BufferRecorder()
    seen, shown = [], set[bytes]()
    learner.attach([recorder])
    step, reset = world.step, world.reset

    def recording_step(actions: Any) -> Any:
        result = step(actions)
        shown.update(image.tobytes() for image in result[0]["image"])
        return result

    def recording_reset(**kwargs: Any) -> Any:
        result = reset(**kwargs)
        shown.update(image.tobytes() for image in result[0]["image"])
        return result

    world.step, world.reset = recording_step, recording_reset  # type: ignore[method-assign]
    learner.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]["image"]))
    learner.learn([1], 32)
    assert len({images.shape[:2] for images in seen}) > 1
    padding = np.zeros(shape, np.uint8).tobytes()
    for images in seen:
        assert images.dtype == torch.uint8
        assert images.shape[2:] == shape
        assert {image.numpy().tobytes() for image in images.flatten(0, 1)} <= shown | {padding}
    (batch,) = recorder.batches
    assert {image.numpy().tobytes() for image in batch.obs["image"].flatten(0, 1)} <= shown
    assert batch.obs["image"].dtype == torch.uint8
    assert batch.action is not None
    assert batch.action.dtype == torch.int64
    assert batch.action.shape == batch.start.shape
    obs, _ = world.reset(seed=0)
    ours, _ = learner.act(obs, learner.module.initial_state(4), np.ones(4, np.bool_))  # type: ignore[operator]
    pictures = {name: x[:, None] if x.ndim == 4 else x for name, x in obs.items()}
    theirs, _ = learner.model.predict(
        pictures, episode_start=np.ones(4, np.bool_), deterministic=True
    )
    np.testing.assert_array_equal(ours, theirs)


@KINDS
def test_steps_are_counted_and_scalars_logged_in_order(recurrent: bool) -> None:
    learner, scalars = control_learner(recurrent), list[tuple[int, dict[str, float]]]()
    learner.on_log = lambda values: scalars.append((learner.steps, values))
    learner.begin([0], 64)
    advanced = [learner.advance() for _ in range(3)]
    learner.begin([1], 40)  # whole rollouts, at least the steps asked for
    advanced += [learner.advance() for _ in range(3)]
    assert advanced == [32, 32, 0] * 2
    assert learner.steps == 128
    trained = [(step, values) for step, values in scalars if "train/loss" in values]
    assert [step for step, _ in trained] == sorted(step for step, _ in trained)
    assert [step for step, _ in trained] == [32, 64, 96, 128], (
        "each rollout's training is logged at its end"
    )
    assert all(math.isfinite(v) for _, values in scalars for v in values.values())
    assert {"train/loss", "train/value_loss", "train/approx_kl", "rollout/ep_rew_mean"} <= {
        n for _, values in scalars for n in values
    }


@KINDS
def test_the_same_seed_gives_the_same_weights_bit_for_bit(recurrent: bool) -> None:
    def train(seed: int) -> list[Tensor]:
        learner = control_learner(recurrent, seed=seed)
        for task in (0, 1):
            learner.learn([task], 32)
        return weights(learner.module)

    first = train(1)
    assert same(first, train(1))
    assert not same(first, train(2))


@KINDS
def test_rollouts_in_another_world_do_not_change_training(recurrent: bool) -> None:
    def train(rollout: bool) -> list[Tensor]:
        learner = control_learner(recurrent)
        for task in (0, 1):
            learner.learn([task], 32)
            if rollout:
                learner.rollout(plant(6), [task], 8, seed=task)
        return weights(learner.module)

    assert same(train(rollout=True), train(rollout=False))


@KINDS
def test_rollouts_have_sampled_actions_in_sequences(recurrent: bool) -> None:
    learner = control_learner(recurrent)
    batch = learner.rollout(plant(6, horizon=5), [1], 8, seed=0)
    assert batch.action is not None
    assert batch.target is None
    assert float(batch.action.abs().max()) > 1.0
    assert (batch.length, len(batch)) == ((4, 12) if recurrent else (1, 48))
    assert batch.task is not None
    assert batch.task.tolist() == [1] * len(batch)
    if recurrent:
        assert batch.start[0].all()
        # an episode of five steps ends within each second sequence
        assert batch.start[1:].sum() == 6
    with pytest.raises(ValueError, match="it must divide the 6 steps"):
        control_learner(True).rollout(plant(), [0], 6, seed=0)


def test_a_nonfinite_gradient_changes_no_weight() -> None:
    learner = control_learner()
    learner.attach([NotANumber()])
    before = weights(learner.module)
    with pytest.raises(NotFiniteError, match="gradient's norm is nan at step 0"):
        learner.learn([0], 32)
    assert same(weights(learner.module), before)


@pytest.mark.parametrize("length", [0, 3, 16])
def test_the_sequence_length_must_divide_the_rollout(length: int) -> None:
    with pytest.raises(
        ValueError, match=f"sequence_length is {length}; it must divide n_steps = 8"
    ):
        control_learner(sequence_length=length)


def test_networks_are_built_for_the_spaces_of_the_world() -> None:
    made: list[tuple[Any, Any]] = []

    def factory(observation_space: Any, action_space: Any) -> Any:
        made.append((observation_space, action_space))
        return agent(observation_space, action_space)

    world = image_stream(9, 8, 3)
    SB3Learner(world, factory, PPO, {"n_steps": 4, "batch_size": 16}, device="cpu")
    ((observation_space, action_space),) = made
    assert observation_space == world.single_observation_space
    assert action_space == world.single_action_space


def test_a_network_with_a_memory_is_for_recurrent_ppo_alone() -> None:
    """PPO would train it with an empty memory at each step, and act with a running one."""
    for algorithm, network, line in (
        (
            PPO,
            recurrent_agent,
            "^the network has a memory, which PPO can't train; use Rec",
        ),
        (RecurrentPPO, agent, "^the network has no memory, which RecurrentPPO trains; use PPO, or"),
    ):
        with pytest.raises(ValueError, match=line):
            SB3Learner(plant(), network, algorithm, {"n_steps": 8, "batch_size": 16})


class OwnPPO(PPO):
    """A user's subclass, which counts its calls of `train`."""

    trained = 0

    def train(self) -> None:
        self.trained += 1
        super().train()


class OwnRecurrentPPO(RecurrentPPO):
    trained = 0

    def train(self) -> None:
        self.trained += 1
        super().train()


@pytest.mark.parametrize(
    ("algorithm", "network"), [(OwnPPO, agent), (OwnRecurrentPPO, recurrent_agent)]
)
def test_the_algorithm_may_be_a_subclass(algorithm: Any, network: Any) -> None:
    learner = SB3Learner(
        plant(), network, algorithm, {"n_steps": 8, "batch_size": 16}, device="cpu"
    )
    before = weights(learner.module)
    learner.learn([0], 64)
    assert learner.model.trained == 2
    assert not same(weights(learner.module), before)


def test_another_algorithm_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^algorithm is A2C; choose PPO or RecurrentPPO, or a subclass$"
    ):
        SB3Learner(plant(), agent, A2C)  # type: ignore[arg-type]


class FarSensor(TaskEnv):
    """A sensor shows 1013 - 1 or 1013 + 1, and the action must say which."""

    tasks = (Task(0, "only"),)
    observation_space = spaces.Dict({"pressure": spaces.Box(-np.inf, np.inf, (1,))})
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        self.left = 16
        return self._look(), info

    def step(self, action: Any) -> Any:
        right, self.left = float(action == self.high), self.left - 1
        return self._look(), right, False, not self.left, {"task": 0}

    def _look(self) -> Any:
        self.high = int(self.np_random.integers(2))
        pressure = 1013 + 2 * self.high - 1 + 0.1 * self.np_random.normal()
        return {"pressure": np.array([pressure], np.float32)}


@pytest.mark.parametrize(("normalize", "right"), [("none", 0.5), ("running", 1.0)])
def test_a_normalised_sensor_far_from_0_is_learned_from(normalize: Any, right: float) -> None:
    torch.manual_seed(0)
    learner = SB3Learner(
        SyncTaskVectorEnv([FarSensor] * 8),
        partial(agent, normalize=normalize),
        PPO,
        {"n_steps": 32, "batch_size": 64, "learning_rate": 3e-3, "gamma": 0.9},
        device="cpu",
    )
    learner.learn([0], 2048)
    found = mean_return(learner, SyncTaskVectorEnv([FarSensor] * 8), 0, seed=0) / 16
    assert found == pytest.approx(right, abs=0.1)
