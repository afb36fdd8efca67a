"""DQN and SAC around our networks: what they see, what they answer, what strategies get, what is
refused.
"""

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
    NotANumber,
    Recorder,
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


# --- what strategies get ---


def in_buffer(learner: Any) -> tuple[dict[str, Any], Any]:
    """Observations (steps, recorder, ...) and actions, in the world's units, that the replay buffer
    holds.
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
    learner, recorder = (
        off_policy_learner(sac, off_policy_world(sac, num_envs), {"train_freq": 3}),
        Recorder(),
    )
    learner.attach([recorder])
    tasks = [2, 0][:num_envs]
    learner.learn(tasks, 12 * num_envs)
    obs, actions = in_buffer(learner)
    assert recorder.steps == [3 * num_envs * i for i in range(4)], "before it has been learned from"
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
def test_the_minibatch_at_hand_holds_transitions_of_the_buffer_and_nothing_else(sac: bool) -> None:
    learner, recorder = off_policy_learner(sac), Recorder()
    learner.attach([recorder])
    learner.learn([0], 64)
    obs, actions = in_buffer(learner)
    kept = {
        row.tobytes(): action
        for row, action in zip(
            obs["feedback"].reshape(64, -1), actions.reshape(64, -1), strict=True
        )
    }
    sensed = {row.tobytes() for row in obs["sensor_0"].reshape(64, -1)}
    assert len(recorder.updates) == learner.model._n_updates
    for batch in recorder.updates:
        assert batch.task is None
        assert (batch.length, len(batch)) == (1, 16)
        assert batch.action is not None
        assert batch.action.dtype == (torch.float32 if sac else torch.int64)
        assert {row.numpy().tobytes() for row in batch.obs["sensor_0"][0]} <= sensed
        for felt, action in zip(batch.obs["feedback"][0], batch.action[0], strict=True):
            if float(felt.abs().sum()):  # at an episode's start nothing has been felt
                np.testing.assert_allclose(
                    action.reshape(-1), kept[felt.numpy().tobytes()], atol=1e-6
                )


@KINDS
def test_the_buffer_is_emptied_for_other_tasks_unless_it_is_to_be_kept(sac: bool) -> None:
    sizes = []
    for reset_buffer in (True, False):
        learner = off_policy_learner(sac, reset_buffer=reset_buffer)
        for tasks in ([0], [0], [1], [1, 0]):
            learner.learn(tasks, 16)
            sizes.append(learner.model.replay_buffer.size())
    assert sizes == [4, 8, 4, 4, 4, 8, 12, 16]


# --- acting ---


@KINDS
def test_predictions_are_the_learners_own_actions(sac: bool) -> None:
    learner, world = off_policy_learner(sac), off_policy_world(sac, 3)
    obs, _ = world.reset(seed=0)
    state, start = learner.module.initial_state(3), np.ones(3, np.bool_)  # type: ignore[operator]
    for _ in range(7):
        ours, state = learner.act(obs, state, start)
        theirs, _ = learner.model.predict(obs, deterministic=True)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        obs, *_ = world.step(ours)


def test_sacs_draws_and_their_probabilities_are_its_likelihoods() -> None:
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


def test_dqns_experience_is_drawn_from_its_boltzmann_policy() -> None:
    counts = []
    for temperature in (0.001, 1000.0):
        learner = off_policy_learner(temperature=temperature)
        batch = learner.rollout(dial_plant(8), [0], 50, seed=0)
        assert batch.action is not None
        greedy = learner.outputs(batch).argmax(-1)
        counts.append(float((batch.action == greedy).float().mean()))
    assert counts[0] > 0.95
    assert 0.1 < counts[1] < 0.3


class Wide(TaskVectorWrapper):
    """A plant whose actions range from 0 to 10."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.single_action_space = spaces.Box(0.0, 10.0, env.single_action_space.shape, np.float32)
        self.taken: list[Any] = []

    def step(self, actions: Any) -> Any:
        self.taken.append(actions)
        return self.env.step(actions / 5 - 1)


def test_sacs_actions_are_in_the_worlds_units() -> None:
    world, recorder = Wide(plant()), Recorder()
    learner = off_policy_learner(sac=True, world=world)
    learner.attach([recorder])
    learner.learn([0], 64)
    taken = np.concatenate(world.taken)
    assert 0 <= taken.min() < 2 < 8 < taken.max() <= 10
    for batch in recorder.updates:
        assert batch.action is not None
        assert {tuple(row) for row in batch.action[0].round(decimals=3).tolist()} <= {
            tuple(row) for row in torch.from_numpy(taken).round(decimals=3).tolist()
        }
    obs, _ = world.reset(seed=0)
    ours, _ = learner.act(obs, learner.module.initial_state(4), np.ones(4, np.bool_))  # type: ignore[operator]
    np.testing.assert_allclose(ours, learner.model.predict(obs, deterministic=True)[0], rtol=1e-5)


def test_networks_see_images_as_the_world_shows_them() -> None:
    world, seen, recorder = image_stream(9, 8, 3), [], Recorder()

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


# --- running ---


@KINDS
def test_advances_and_scalars_are_counted_and_named(sac: bool) -> None:
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
def test_the_same_seed_gives_the_same_weights_to_the_last_bit_and_rollouts_leave_training_alone(
    sac: bool,
) -> None:
    def train(seed: int, look: bool = False) -> list[Tensor]:
        learner = off_policy_learner(sac, seed=seed)
        for task in (0, 1):
            learner.learn([task], 48)
            if look:
                learner.rollout(off_policy_world(sac, 6), [task], 8, seed=task)
        return weights(learner.module)

    first = train(1)
    assert same(first, train(1, look=True))
    assert not same(first, train(2))


@KINDS
def test_a_frozen_copy_stays_as_it_is(sac: bool) -> None:
    learner = off_policy_learner(sac)
    learner.learn([0], 48)
    copy = learner.frozen_copy()
    assert same(weights(copy), weights(learner.module))
    learner.learn([0], 48)
    assert not same(weights(copy), weights(learner.module))


@KINDS
def test_a_gradient_that_is_not_finite_changes_no_weight(sac: bool) -> None:
    learner = off_policy_learner(sac)
    learner.attach([NotANumber()])
    before = weights(learner.module)
    with pytest.raises(NotFiniteError, match="gradient's norm is nan at step 8"):
        learner.learn([0], 32)
    assert same(weights(learner.module), before)


def test_only_sacs_actor_is_accompanied() -> None:
    learner, recorder = off_policy_learner(sac=True), Recorder()
    learner.attach([recorder])
    learner.learn([0], 64)
    assert len(recorder.updates) == learner.model._n_updates
    assert learner.module is learner.model.actor.adapter.network
    assert not learner.model.critic.optimizer._optimizer_step_pre_hooks


@KINDS
def test_it_learns(sac: bool) -> None:
    """The task that it does worst at first: 0 is a random agent, 1 the best known."""
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
    print(before, after)
    assert before[worst] < 0.3
    assert after[worst] > 0.8


# --- refusals ---


@pytest.mark.parametrize("name", ["max_grad_norm", "policy_kwargs", "use_sde", "seed", "device"])
@KINDS
def test_parameters_that_the_learner_sets_are_refused(sac: bool, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"parameters contain '{name}', which the learner sets itself"
    ):
        off_policy_learner(sac, parameters={name: 1})


@KINDS
def test_a_network_with_a_memory_is_refused(sac: bool) -> None:
    make = (
        (lambda: SACLearner(plant(), recurrent_agent, critic_net))
        if sac
        else (lambda: DQNLearner(dial_plant(), recurrent_agent))
    )
    with pytest.raises(ValueError, match="DQN and SAC need a network without one"):
        make()


def test_actions_of_another_kind_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"action space is Box.*; DQN needs Discrete actions that start at 0"
    ):
        DQNLearner(plant(), actor_net)
    with pytest.raises(ValueError, match=r"action space is Discrete.*; SAC needs a flat Box"):
        SACLearner(dial_plant(), actor_net, critic_net)
    world = plant()
    world.single_action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(ValueError, match="bounds must be finite"):
        SACLearner(world, actor_net, critic_net)


def test_a_modality_with_the_name_of_the_critics_action_is_refused() -> None:
    world = plant()
    world.single_observation_space = spaces.Dict(
        {**world.single_observation_space.spaces, "action": spaces.Box(-1, 1, (2,))}
    )
    with pytest.raises(ValueError, match="the world has a modality 'action'"):
        SACLearner(world, actor_net, critic_net)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(temperature: float) -> None:
    with pytest.raises(
        ValueError, match=f"temperature is {temperature}; it must be finite and above 0"
    ):
        off_policy_learner(temperature=temperature)


@KINDS
def test_a_strategy_that_needs_labels_is_refused(sac: bool) -> None:
    with pytest.raises(ValueError, match="which this learner does not have; use reservoir or ring"):
        off_policy_learner(sac).attach([Replay(memory="class-balanced")])
