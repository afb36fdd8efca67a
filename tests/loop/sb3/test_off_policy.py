"""DQN and SAC with our networks: batches for strategies, actions, training, and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from loop_helpers import (
    DQN_PARAMETERS,
    SAC_PARAMETERS,
    ConcatNet,
    actor_net,
    agent,
    critic_net,
    dial_plant,
    image_stream,
    off_policy_learner,
    off_policy_world,
    plant,
    recurrent_agent,
    same,
    weights,
)
from stable_baselines3 import DQN, PPO, SAC
from stub_helpers import NotANumber, Recorder
from torch import Tensor

from everloop.envs import TaskVectorWrapper
from everloop.loop import (
    DQNLearner,
    Learner,
    NotFiniteError,
    Replay,
    SACLearner,
    scores,
)

KINDS = pytest.mark.parametrize("sac", [False, True], ids=["dqn", "sac"])


# batches that strategies get


def stored_steps(learner: Any) -> tuple[dict[str, Any], Any]:
    """Return observations and actions of the replay buffer, of shape (steps, environments, ...).

    Actions are in the world's units.
    """
    buffer = learner.model.replay_buffer
    size = buffer.size()
    actions = buffer.actions[:size]
    actions = (
        learner.policy.unscale_action(actions)
        if isinstance(learner.world.single_action_space, spaces.Box)
        else actions[..., 0]
    )
    return {name: values[:size] for name, values in buffer.observations.items()}, actions


@pytest.mark.parametrize("num_envs", [1, 4])
@KINDS
def test_strategies_observe_every_step_once_and_in_order(sac: bool, num_envs: int) -> None:
    world, recorder = off_policy_world(sac, num_envs), Recorder()
    learner = off_policy_learner(sac, world, {"train_freq": 3})
    learner.attach([recorder])
    tasks = [2, 0][:num_envs]
    learner.learn(tasks, 12 * num_envs)
    obs, actions = stored_steps(learner)
    assert recorder.steps == [3 * num_envs * i for i in range(4)], (
        "a step is observed before training on it"
    )
    for i, batch in enumerate(recorder.observed):
        assert (batch.length, len(batch)) == (1, 3 * num_envs)
        assert batch.start.all()
        assert batch.action is not None
        assert batch.task is not None
        steps = slice(3 * i, 3 * i + 3)
        for name in obs:
            np.testing.assert_array_equal(
                batch.obs[name][0], obs[name][steps].reshape(3 * num_envs, -1)
            )
        np.testing.assert_allclose(
            batch.action[0], actions[steps].reshape(batch.action[0].shape), atol=1e-6
        )
        assert batch.task.tolist() == np.resize(np.resize(tasks, num_envs), 3 * num_envs).tolist()


@KINDS
def test_minibatches_contain_only_transitions_of_the_buffer(sac: bool) -> None:
    learner, recorder = off_policy_learner(sac), Recorder()
    learner.attach([recorder])
    learner.learn([0], 64)
    obs, actions = stored_steps(learner)
    action_before = {
        row.tobytes(): action
        for row, action in zip(
            obs["feedback"].reshape(64, -1), actions.reshape(64, -1), strict=True
        )
    }
    sensors = {row.tobytes() for row in obs["sensor_0"].reshape(64, -1)}
    assert len(recorder.updates) == learner.model._n_updates
    for batch in recorder.updates:
        assert batch.task is None
        assert (batch.length, len(batch)) == (1, 16)
        assert batch.action is not None
        assert batch.action.dtype == (torch.float32 if sac else torch.int64)
        assert {row.numpy().tobytes() for row in batch.obs["sensor_0"][0]} <= sensors
        for feedback, action in zip(batch.obs["feedback"][0], batch.action[0], strict=True):
            if float(feedback.abs().sum()):  # an episode starts without feedback
                np.testing.assert_allclose(
                    action.reshape(-1), action_before[feedback.numpy().tobytes()], atol=1e-6
                )


@KINDS
def test_reset_buffer_empties_the_buffer_when_the_tasks_change(sac: bool) -> None:
    sizes = []
    for reset_buffer in (True, False):
        learner = off_policy_learner(sac, reset_buffer=reset_buffer)
        for tasks in ([0], [0], [1], [1, 0]):
            learner.learn(tasks, 16)
            sizes.append(learner.model.replay_buffer.size())
    assert sizes == [4, 8, 4, 4, 4, 8, 12, 16]


# actions


@KINDS
def test_sb3_predicts_the_same_actions_as_the_learner(sac: bool) -> None:
    learner, world = off_policy_learner(sac), off_policy_world(sac, 3)
    obs, _ = world.reset(seed=0)
    state, start = learner.module.initial_state(3), np.ones(3, np.bool_)  # type: ignore[operator]
    for _ in range(7):
        ours, state = learner.act(obs, state, start)
        theirs, _ = learner.model.predict(obs, deterministic=True)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        obs, *_ = world.step(ours)


def test_sac_samples_from_the_learners_likelihood() -> None:
    learner = off_policy_learner(sac=True)
    obs = {name: torch.from_numpy(value) for name, value in plant(4).reset(seed=0)[0].items()}
    with torch.no_grad():
        p = learner.model.actor.adapter(obs)
        torch.manual_seed(0)
        actions, log_prob = learner.model.actor.action_log_prob(obs)
        torch.manual_seed(0)
        torch.testing.assert_close(actions, learner.likelihood.sample(p))
    torch.testing.assert_close(
        log_prob, learner.likelihood.log_prob(p, actions), rtol=1e-4, atol=1e-4
    )


def test_dqn_rollouts_sample_from_a_boltzmann_policy() -> None:
    counts = []
    for temperature in (0.001, 1000.0):
        learner = off_policy_learner(temperature=temperature)
        batch = learner.rollout(dial_plant(8), [0], 50, seed=0)
        assert batch.action is not None
        greedy = learner.outputs(batch).argmax(-1)
        counts.append(float((batch.action == greedy).float().mean()))
    assert counts[0] > 0.95
    assert 0.1 < counts[1] < 0.3


class WideActions(TaskVectorWrapper):
    """A plant whose actions range from 0 to 10."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.single_action_space = spaces.Box(0.0, 10.0, env.single_action_space.shape, np.float32)
        self.taken: list[Any] = []

    def step(self, actions: Any) -> Any:
        self.taken.append(actions)
        return self.env.step(actions / 5 - 1)


def test_sac_acts_in_the_units_of_the_world_and_learns_in_its_own() -> None:
    """From 0 to 10, and from -1 to 1."""
    world, recorder = WideActions(plant()), Recorder()
    learner = off_policy_learner(sac=True, world=world)
    learner.attach([recorder])
    learner.learn([0], 64)
    taken = np.concatenate(world.taken)
    assert 0 <= taken.min() < 2 < 8 < taken.max() <= 10
    for batch in recorder.updates:
        assert batch.action is not None
        assert {tuple(row) for row in batch.action[0].round(decimals=3).tolist()} <= {
            tuple(row) for row in torch.from_numpy(taken / 5 - 1).round(decimals=3).tolist()
        }
    obs, _ = world.reset(seed=0)
    ours, _ = learner.act(obs, learner.module.initial_state(4), np.ones(4, np.bool_))  # type: ignore[operator]
    theirs = learner.model.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(ours, 5 * theirs + 5, rtol=1e-5)


def test_networks_get_images_in_the_shape_of_the_world() -> None:
    world = image_stream(9, 8, 3)
    seen = []
    recorder = Recorder()

    def network(observation_space: Any, action_space: Any) -> Any:
        assert observation_space == world.single_observation_space
        return agent(observation_space, action_space, value_head=False)

    learner = DQNLearner(world, network, DQN_PARAMETERS, device="cpu")
    learner.attach([recorder])
    learner.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]["image"]))
    learner.learn([1], 64)
    assert all(images.shape[2:] == (9, 8, 3) and images.dtype == torch.uint8 for images in seen)
    for batch in (*recorder.observed, *recorder.updates):
        assert batch.obs["image"].shape[2:] == (9, 8, 3)
    obs, _ = world.reset(seed=0)
    ours, _ = learner.act(obs, learner.module.initial_state(4), np.ones(4, np.bool_))  # type: ignore[operator]
    pictures = {name: x[:, None] if x.ndim == 4 else x for name, x in obs.items()}
    np.testing.assert_array_equal(ours, learner.model.predict(pictures, deterministic=True)[0])


# training


@KINDS
def test_steps_are_counted_and_scalars_logged_in_order(sac: bool) -> None:
    learner, scalars = off_policy_learner(sac), list[tuple[int, dict[str, float]]]()
    learner.on_log = lambda values: scalars.append((learner.steps, values))
    learner.begin([0], 64)
    advanced = [learner.advance() for _ in range(9)]
    learner.begin([1], 60)  # whole chunks, at least the steps asked for
    advanced += [learner.advance() for _ in range(9)]
    assert advanced == [*[8] * 8, 0] * 2
    assert learner.steps == 128
    steps = [step for step, _ in scalars]
    assert steps == sorted(steps)
    assert all(math.isfinite(v) for _, values in scalars for v in values.values())
    assert {"train/actor_loss" if sac else "train/loss", "rollout/ep_rew_mean"} <= {
        n for _, values in scalars for n in values
    }


@KINDS
def test_a_seed_determines_training_and_rollouts_do_not_change_it(
    sac: bool,
) -> None:
    def train(seed: int, rollout: bool = False) -> list[Tensor]:
        learner = off_policy_learner(sac, seed=seed)
        for task in (0, 1):
            learner.learn([task], 48)
            if rollout:
                learner.rollout(off_policy_world(sac, 6), [task], 8, seed=task)
        return weights(learner.module)

    first = train(1)
    assert same(first, train(1, rollout=True))
    assert not same(first, train(2))


@KINDS
def test_training_does_not_change_a_frozen_copy(sac: bool) -> None:
    learner = off_policy_learner(sac)
    learner.learn([0], 48)
    copy = learner.frozen_copy()
    assert same(weights(copy), weights(learner.module))
    learner.learn([0], 48)
    assert not same(weights(copy), weights(learner.module))


@KINDS
def test_a_nonfinite_gradient_changes_no_weight(sac: bool) -> None:
    learner = off_policy_learner(sac)
    learner.attach([NotANumber()])
    before = weights(learner.module)
    with pytest.raises(NotFiniteError, match="gradient's norm is nan at step 8"):
        learner.learn([0], 32)
    assert same(weights(learner.module), before)


def test_strategies_act_on_the_actor_of_sac_only() -> None:
    learner, recorder = off_policy_learner(sac=True), Recorder()
    learner.attach([recorder])
    learner.learn([0], 64)
    assert len(recorder.updates) == learner.model._n_updates
    assert learner.module is learner.model.actor.adapter.network
    assert not learner.model.critic.optimizer._optimizer_step_pre_hooks


@KINDS
def test_training_improves_the_score(sac: bool) -> None:
    """Training raises the score of the worst task; 0 is a random agent, 1 the best known."""
    parameters = {
        "buffer_size": 5000,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "train_freq": 1,
        "target_update_interval": 100,
    }
    hidden = {"hidden": 32}

    def net(space: Any, action_space: Any) -> ConcatNet:
        return ConcatNet(space, 4 if sac else 5, **hidden)

    world: Any = off_policy_world(sac, 8, horizon=20)
    learner: Learner
    if sac:
        parameters |= {"target_update_interval": 1, "tau": 0.02}
        learner = SACLearner(
            world,
            net,
            lambda space: ConcatNet(space, 1, **hidden),
            SAC_PARAMETERS | parameters,
            device="cpu",
        )
    else:
        learner = DQNLearner(world, net, DQN_PARAMETERS | parameters, device="cpu")
    before = scores(learner, off_policy_world(sac, 8, horizon=20), [], seed=0)
    worst = int(np.argmin(before))
    learner.learn([worst], 3000)
    after = scores(learner, off_policy_world(sac, 8, horizon=20), [], seed=0)
    assert before[worst] < 0.3
    assert after[worst] > 0.8


# errors


@pytest.mark.parametrize("name", ["max_grad_norm", "policy_kwargs", "use_sde", "seed", "device"])
@KINDS
def test_parameters_set_by_the_learner_are_refused(sac: bool, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"parameters contain '{name}', which the learner sets itself"
    ):
        off_policy_learner(sac, parameters={name: 1})


@KINDS
def test_recurrent_networks_are_refused(sac: bool) -> None:
    make = (
        (lambda: SACLearner(plant(), recurrent_agent, critic_net))
        if sac
        else (lambda: DQNLearner(dial_plant(), recurrent_agent))
    )
    with pytest.raises(ValueError, match="a memory, which DQN and SAC can't train; use a net"):
        make()


def test_unsupported_action_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action space is Box.*; DQN needs Discrete actions"):
        DQNLearner(plant(), actor_net)
    with pytest.raises(ValueError, match=r"action space is Discrete.*; SAC needs a flat Box"):
        SACLearner(dial_plant(), actor_net, critic_net)
    world = plant()
    world.single_action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(ValueError, match="bounds must be finite"):
        SACLearner(world, actor_net, critic_net)


def test_a_modality_named_action_is_refused_by_sac() -> None:
    world = plant()
    world.single_observation_space = spaces.Dict(
        {**world.single_observation_space.spaces, "action": spaces.Box(-1, 1, (2,))}
    )
    with pytest.raises(ValueError, match="the world has a modality 'action'"):
        SACLearner(world, actor_net, critic_net)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_must_be_finite_and_above_0(temperature: float) -> None:
    with pytest.raises(
        ValueError, match=f"temperature is {temperature}; it must be finite and above 0"
    ):
        off_policy_learner(temperature=temperature)


@KINDS
def test_a_strategy_that_needs_labels_is_refused(sac: bool) -> None:
    with pytest.raises(ValueError, match="which this learner does not have; use reservoir or ring"):
        off_policy_learner(sac).attach([Replay(memory="class-balanced")])


class OwnDQN(DQN):
    """A user's subclass."""


class OwnSAC(SAC):
    """A user's subclass."""


@KINDS
def test_the_algorithm_may_be_a_subclass(sac: bool) -> None:
    learner = off_policy_learner(sac, algorithm=OwnSAC if sac else OwnDQN)
    assert type(learner.model) is (OwnSAC if sac else OwnDQN)
    learner.learn([0], 24)
    with pytest.raises(
        ValueError, match=f"^algorithm is PPO; choose {'SAC' if sac else 'DQN'}, or"
    ):
        off_policy_learner(sac, algorithm=PPO)
