"""Strategies in PPO and RecurrentPPO equal the same terms written into PPO's own loss."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from loop_helpers import (
    PPO_PARAMETERS,
    agent,
    control_learner,
    distance,
    plant,
    recurrent_agent,
    same,
    weights,
)
from sb3_contrib import RecurrentPPO
from sb3_helpers import (
    Anchors,
    ewc_penalty,
    gradients_in_task_1,
    train_unmodified,
    train_with_strategies,
)
from stable_baselines3 import PPO
from stub_helpers import GradientNorms
from torch import Tensor

from everloop.loop import (
    EWC,
    Batch,
    Learner,
    Replay,
    RWalk,
    Strategy,
    WorldVecEnv,
    diagonal_fisher,
)
from everloop.loop.sb3.on_policy import NetworkPolicy, RecurrentNetworkPolicy
from everloop.loop.strategies.parts.rng import generator_for

KINDS = pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])
ENT_COEF = PPO_PARAMETERS["ent_coef"]
STRENGTH = 300.0
STEPS = 64


class Penalised:
    """Adds EWC's penalty to PPO's loss.

    PPO's loss contains -ent_coef times the entropy, so the penalty / ent_coef is subtracted from
    the entropy.
    """

    anchors: Anchors

    def evaluate_actions(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, log_prob, entropy = super().evaluate_actions(*args)  # type: ignore[misc]
        penalty = ewc_penalty(self.network, self.anchors, STRENGTH)  # type: ignore[attr-defined]
        return values, log_prob, entropy - penalty / ENT_COEF


class PenalisedPolicy(Penalised, NetworkPolicy):  # type: ignore[misc]
    pass


class PenalisedRecurrentPolicy(Penalised, RecurrentNetworkPolicy):  # type: ignore[misc]
    pass


def unmodified_ppo(recurrent: bool, penalised: bool) -> Any:
    """PPO or RecurrentPPO of SB3, without our hooks; it clips gradients at 0.5 itself."""
    plain, with_penalty = (
        (RecurrentNetworkPolicy, PenalisedRecurrentPolicy)
        if recurrent
        else (NetworkPolicy, PenalisedPolicy)
    )
    return (RecurrentPPO if recurrent else PPO)(
        with_penalty if penalised else plain,
        WorldVecEnv(plant()),
        **PPO_PARAMETERS,
        max_grad_norm=0.5,
        policy_kwargs={
            "network": recurrent_agent if recurrent else agent,
            "optimizer_kwargs": {"fused": True, "eps": 1e-5},
        },
        seed=0,
        device="cpu",
    )


def train_ppo(recurrent: bool, tasks: int, penalised: bool = False) -> list[list[Tensor]]:
    """The weights of unmodified PPO after each task, under a penalty if `penalised`."""
    model, learner = unmodified_ppo(recurrent, penalised), control_learner(recurrent)
    world = plant(6) if penalised else None
    return train_unmodified(model, model.policy.network, learner, tasks, STEPS, world)


def train_learner(
    recurrent: bool, tasks: int, strategies: list[Strategy], clip_in_hook: bool = True
) -> list[list[Tensor]]:
    """The weights of our learner after each task.

    `clip_in_hook` False leaves the clipping to SB3, which clips before the strategies.
    """
    learner = control_learner(recurrent)
    if not clip_in_hook:
        learner.max_grad_norm, learner.model.max_grad_norm = None, 0.5
    return train_with_strategies(learner, strategies, tasks, STEPS, plant(6))


@KINDS
def test_ewc_equals_a_penalty_in_ppos_loss(recurrent: bool) -> None:
    """Three tasks with two penalties end at the same weights, while clipping is active.

    A penalty that is added after the clipping gives other weights.
    """
    expected = train_ppo(recurrent, 3, penalised=True)
    norms = GradientNorms()
    found = train_learner(recurrent, 3, [EWC(STRENGTH, fisher="empirical"), norms])
    unclipped = train_learner(recurrent, 3, [EWC(STRENGTH, fisher="empirical")], clip_in_hook=False)
    without = train_learner(recurrent, 3, [])
    assert sum(norm > 0.5 for norm in norms.values) > len(norms.values) / 2
    for ours, theirs in zip(found, expected, strict=True):
        assert distance(ours, theirs) < 2e-5
    assert same(found[0], expected[0])
    assert distance(unclipped[-1], expected[-1]) > 1e-2
    assert distance(without[-1], expected[-1]) > 1e-2


@KINDS
def test_strength_0_equals_unmodified_sb3_bit_for_bit(recurrent: bool) -> None:
    """Hooks, memories and the ends of tasks change nothing."""
    replay = Replay(strength=0.0)
    found = train_learner(recurrent, 3, [EWC(0.0), replay])
    for ours, theirs in zip(found, train_ppo(recurrent, 3), strict=True):
        assert same(ours, theirs)
    assert len(replay.memory) == 0


@KINDS
def test_without_strategies_the_learner_equals_unmodified_sb3(recurrent: bool) -> None:
    assert same(train_learner(recurrent, 2, [])[-1], train_ppo(recurrent, 2)[-1])


@KINDS
def test_replay_adds_the_gradient_of_its_loss_to_ppos(recurrent: bool) -> None:
    """One update of task 1 with and without replay, from the same weights and minibatch."""
    with_replay, without = (
        gradients_in_task_1(control_learner(recurrent), strategy, STEPS, plant(6))
        for strategy in (Replay(strength=5.0, capacity=50, batch_size=8), None)
    )
    assert max(float(g.abs().max()) for g in with_replay.own) > 1e-3
    for total, plain, own in zip(with_replay.total, without.total, with_replay.own, strict=True):
        torch.testing.assert_close(total, plain + own, rtol=1e-4, atol=1e-6)


@KINDS
def test_ewc_continues_bit_for_bit_from_a_restored_state(recurrent: bool) -> None:
    def train(restore: bool) -> list[Tensor]:
        learner, ewc = control_learner(recurrent), EWC(STRENGTH, seed=7)
        for task in range(3):
            learner.attach([ewc])
            learner.learn([task], 32)
            ewc.end_task(
                learner.world.tasks[task],
                [learner.rollout(plant(6), [task], 4, seed=task)],
                learner,
            )
            if restore:
                state, ewc = ewc.state_dict(), EWC(STRENGTH, seed=99)
                learner.attach([ewc])
                ewc.load_state_dict(state, learner)
        return weights(learner.module)

    assert same(train(restore=True), train(restore=False))


class Seen(Strategy):
    """Keeps the latest rollout, as examples of twice as many steps, and its minibatches."""

    def observe(self, batch: Batch, learner: Learner) -> None:
        self.minibatches = list[Batch]()
        learner.sequence_length *= 2
        self.rollout = learner.rollout_batch()  # type: ignore[attr-defined]
        learner.sequence_length //= 2

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        self.minibatches.append(batch)


def test_minibatches_of_a_recurrent_policy_are_sequences_of_the_rollout() -> None:
    """Consecutive steps of one copy; an episode that begins within resets the memory."""
    learner, seen = control_learner(True, plant(horizon=6)), Seen()
    learner.attach([seen])
    learner.learn([0], 32)
    rollout = seen.rollout  # an example is all eight steps of one copy
    shown = rollout.obs["sensor_0"]
    copy_and_step = {shown[t, b].numpy().tobytes(): (b, t) for b in range(4) for t in range(8)}
    assert [(m.length, len(m)) for m in seen.minibatches] == [(4, 4)] * 4
    resets = joints = 0
    for batch in seen.minibatches:
        for example in range(len(batch)):
            keys = [x.numpy().tobytes() for x in batch.obs["sensor_0"][:, example]]
            places = [copy_and_step[key] for key in keys]
            assert batch.start[0, example]
            for i, ((b, t), (c, s)) in enumerate(pairwise(places), 1):
                consecutive = (c, s) == (b, t + 1)
                assert bool(batch.start[i, example]) == (
                    not consecutive or bool(rollout.start[s, c])
                )
                resets += consecutive and bool(rollout.start[s, c])
                joints += not consecutive
            for i, (b, t) in enumerate(places):
                assert torch.equal(batch.action[i, example], rollout.action[t, b])  # type: ignore[index]
    assert min(resets, joints) > 0


def test_rwalk_measures_the_importance_of_recurrent_weights() -> None:
    """Its Fisher information is that of the first minibatch, as examples of four steps."""
    learner, rwalk, seen = control_learner(True), RWalk(interval=50), Seen()
    learner.attach([rwalk, seen])
    draws = RWalk().generator
    before = copy.deepcopy(learner.module.state_dict())
    rwalk.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 32)
    learner.module.load_state_dict(before)
    expected = diagonal_fisher(learner, seen.minibatches[:1], generator_for(learner, draws))
    for name, F in rwalk.fisher.items():
        torch.testing.assert_close(F, expected[name])
    assert float(expected["memory.gru.weight_hh_l0"].max()) > 0


def test_a_recurrent_policy_with_examples_of_one_step_leaves_a_note() -> None:
    (note,) = control_learner(True, sequence_length=1).notes
    assert note.startswith("sequence_length is 1, so strategies see nothing of the memory's")
    assert not control_learner(True).notes
    assert not control_learner().notes
