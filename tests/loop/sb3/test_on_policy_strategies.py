"""Strategies in the depth of PPO: the same numbers as if everything stood in PPO's own loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop_helpers import (
    PPO_PARAMETERS,
    GradientNorms,
    agent,
    control_learner,
    distance,
    plant,
    recurrent_agent,
    rehearsal_loss,
    same,
    weights,
)
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from torch import Tensor

from everloop.loop import EWC, Batch, Learner, Replay, Strategy, WorldVecEnv, diagonal_fisher
from everloop.loop.sb3.on_policy import NetworkPolicy, RecurrentNetworkPolicy, SB3Learner

KINDS = pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])
ENT_COEF = PPO_PARAMETERS["ent_coef"]
STRENGTH = 300.0


class Penalised:
    """Has a penalty to subtract from the entropies that PPO's loss takes with the factor
    -ent_coef.
    """

    strength = 0.0
    anchors: list[tuple[list[Tensor], list[Tensor]]]

    def penalty(self) -> Tensor:
        total = torch.zeros(())
        for fisher, then in self.anchors:
            for w, f, w_then in zip(self.network.parameters(), fisher, then, strict=True):  # type: ignore[attr-defined]
                total = total + (f * (w - w_then) ** 2).sum()
        return self.strength / 2 * total

    def evaluate_actions(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, log_prob, entropy = super().evaluate_actions(*args)  # type: ignore[misc]
        return values, log_prob, entropy - self.penalty() / ENT_COEF


class PenalisedPolicy(Penalised, NetworkPolicy):  # type: ignore[misc]
    pass


class PenalisedRecurrentPolicy(Penalised, RecurrentNetworkPolicy):  # type: ignore[misc]
    pass


def unmodified(recurrent: bool, penalised: bool) -> Any:
    """SB3 as everybody has it: clips at 0.5 by itself, knows of no hook."""
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


def plain_training(recurrent: bool, tasks: int, strength: float = 0.0) -> list[list[Tensor]]:
    """Weights after each task, under a penalty around the weights at each earlier task's end."""
    model, found = unmodified(recurrent, strength > 0), []
    policy = model.policy
    policy.strength, policy.anchors = strength, []
    looker = control_learner(
        recurrent
    )  # judges the model's network for the Fisher information, and never learns
    looker.module = policy.network
    model.set_random_seed(0)  # making the looker drew from the global generators
    for task in range(tasks):
        model.env.tasks = [task]
        model.learn(64)
        if strength:
            batch = looker.rollout(plant(6), [task], 8, seed=task)
            policy.anchors = [
                *policy.anchors,
                (
                    diagonal_fisher(looker, [batch], by_hooks=False).values(),
                    weights(policy.network),
                ),
            ]
        found.append(weights(policy.network))
    return found


def our_training(
    recurrent: bool, tasks: int, strategies: list[Strategy], clip_in_hook: bool = True
) -> tuple[SB3Learner, list[list[Tensor]]]:
    learner, found = control_learner(recurrent), []
    if not clip_in_hook:
        learner.max_grad_norm, learner.model.max_grad_norm = None, 0.5
    learner.attach(strategies)
    learner.model.set_random_seed(0)
    for task in range(tasks):
        for strategy in strategies:
            strategy.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        batch = learner.rollout(plant(6), [task], 8, seed=task)
        for strategy in strategies:
            strategy.end_task(learner.world.tasks[task], [batch], learner)
        found.append(weights(learner.module))
    return learner, found


@KINDS
def test_ewc_equals_a_penalty_in_ppos_loss(recurrent: bool) -> None:
    """Three tasks, two penalties, clipping at work: the same weights.

    A penalty that escaped the clip would end elsewhere.
    """
    expected = plain_training(recurrent, 3, STRENGTH)
    norms = GradientNorms()
    _, found = our_training(recurrent, 3, [EWC(STRENGTH, fisher="empirical"), norms])
    _, escaped = our_training(recurrent, 3, [EWC(STRENGTH, fisher="empirical")], clip_in_hook=False)
    _, without = our_training(recurrent, 3, [])
    assert sum(norm > 0.5 for norm in norms.values) > len(norms.values) / 2
    for ours, theirs in zip(found, expected, strict=True):
        assert distance(ours, theirs) < 2e-5
    assert same(found[0], expected[0])
    assert distance(escaped[-1], expected[-1]) > 1e-2
    assert distance(without[-1], expected[-1]) > 1e-2


@KINDS
def test_strength_0_is_unmodified_sb3_to_the_last_bit(recurrent: bool) -> None:
    """Hooks, memories, task ends and all: as if they were not there."""
    replay = Replay(strength=0.0)
    _, found = our_training(recurrent, 3, [EWC(0.0), replay])
    for ours, theirs in zip(found, plain_training(recurrent, 3), strict=True):
        assert same(ours, theirs)
    assert len(replay.memory) == 0


@KINDS
def test_no_strategies_are_unmodified_sb3_to_the_last_bit(recurrent: bool) -> None:
    _, found = our_training(recurrent, 2, [])
    assert same(found[-1], plain_training(recurrent, 2)[-1])


@KINDS
def test_replay_adds_its_losss_gradient_to_ppos(recurrent: bool) -> None:
    """One update of the second task, with and without the rehearsed loss, from the same weights and
    the same minibatch.
    """

    class Capture(Strategy):
        """The gradient and the rehearsed loss's own gradient at the first update of the second
        task.
        """

        def __init__(self, replay: Replay | None) -> None:
            self.replay, self.armed = replay, False
            self.gradient: list[Tensor] = []
            self.own: list[Tensor] = []

        def edit_gradients(self, batch: Batch, learner: Learner) -> None:
            if not self.armed or self.gradient:
                return
            parameters = list(learner.module.parameters())
            self.gradient = [
                p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in parameters
            ]
            if self.replay is not None:
                self.replay.memory.rng.bit_generator.state = self.state
                loss = rehearsal_loss(self.replay, learner)
                assert loss is not None
                assert float(loss.detach()) > 1e-6
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                self.own = [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(parameters, found, strict=True)
                ]

        def recall(self, learner: Learner) -> None:
            if self.armed and self.replay is not None and not self.gradient:
                self.state = self.replay.memory.rng.bit_generator.state

    def first_update(rehearse: bool) -> Capture:
        replay = Replay(strength=5.0, capacity=50, batch_size=8)
        capture = Capture(replay if rehearse else None)
        strategies: list[Strategy] = [capture, replay] if rehearse else [capture]
        learner, _ = our_training(recurrent, 1, strategies)
        torch.manual_seed(1)
        with torch.no_grad():
            for p in learner.module.parameters():
                p.add_(
                    0.05 * torch.randn_like(p)
                )  # away from the stored policy, where the loss is 0
        capture.armed = True
        learner.model.set_random_seed(3)
        learner.learn([1], 32)
        return capture

    with_it, without = first_update(rehearse=True), first_update(rehearse=False)
    assert max(float(g.abs().max()) for g in with_it.own) > 1e-3
    for total, plain, own in zip(with_it.gradient, without.gradient, with_it.own, strict=True):
        torch.testing.assert_close(total, plain + own, rtol=1e-4, atol=1e-6)


@KINDS
def test_ewc_goes_on_bit_for_bit_from_a_restored_state(recurrent: bool) -> None:
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
