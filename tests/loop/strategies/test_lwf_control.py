"""LwF beside PPO: its gradient joins PPO's own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from loop_helpers import (
    PPO_PARAMETERS,
    agent,
    control_learner,
    gradients,
    perturb,
    plant,
    same,
    weights,
)
from torch import Tensor, nn

from everloop.loop import (
    Batch,
    Gaussian,
    Learner,
    LwF,
    Strategy,
)
from everloop.loop.sb3.on_policy import SB3Learner


class GradientRecorder(Strategy):
    """The gradient and the weights at the first update after it was armed."""

    def __init__(self) -> None:
        self.armed = False
        self.gradient = list[Tensor]()
        self.before = nn.Module()
        self.batch = Batch({}, torch.zeros(1, 0))

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        if self.armed and not self.gradient:
            assert batch is not None
            self.gradient = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in learner.module.parameters()
            ]
            self.before, self.batch = copy.deepcopy(learner.module), batch


def first_update(learner: SB3Learner, strategies: list[Strategy]) -> GradientRecorder:
    """The first update of the second task, from weights away from the first's end, which both
    strategies were told of.
    """
    capture = GradientRecorder()
    learner.attach([*strategies, capture])
    learner.model.set_random_seed(0)
    for strategy in strategies:
        strategy.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 32)
    for strategy in strategies:
        strategy.end_task(learner.world.tasks[0], [], learner)
        strategy.begin_task(learner.world.tasks[1], learner)
    perturb(learner.module, 1, 0.05)
    capture.armed = True
    learner.model.set_random_seed(3)
    learner.learn([1], 32)
    return capture


def test_in_ppo_the_formulas_gradient_joins_ppos_own() -> None:
    """With and without, from the same weights and the same minibatch: their difference is the
    formula's gradient.
    """
    lwf = LwF(5.0)
    with_it, without = first_update(control_learner(), [lwf]), first_update(control_learner(), [])
    assert same(weights(with_it.before), weights(without.before))
    looker, then = control_learner(), lwf.teacher.module
    (m, log_s), (m_now, log_s_now) = (
        Gaussian(2).split(looker.outputs(with_it.batch, net)) for net in (then, with_it.before)
    )
    s, s_now = log_s.exp(), log_s_now.exp()
    written = (
        5.0 * ((s_now / s).log() + (s**2 + (m - m_now) ** 2) / (2 * s_now**2) - 0.5).sum(-1).mean()
    )
    own = gradients(written, with_it.before)
    assert max(float(g.abs().max()) for g in own) > 1e-3
    for total, plain, part in zip(with_it.gradient, without.gradient, own, strict=True):
        torch.testing.assert_close(total, plain + part, rtol=1e-4, atol=1e-6)


def test_in_ppo_it_is_the_heads_of_ended_tasks_that_are_kept() -> None:
    """Where each task has a head the formula is that of the past one, on the new task's
    observations.
    """

    def heads(observation_space: Any, action_space: Any) -> nn.Module:
        return agent(observation_space, action_space, head_per_task=True)

    def learner() -> SB3Learner:
        return SB3Learner(plant(task_cue=True), heads, parameters=PPO_PARAMETERS, device="cpu")

    lwf = LwF(5.0)
    with_it, without = first_update(learner(), [lwf]), first_update(learner(), [])
    looker = learner()
    z_then, z = (
        looker.forward(with_it.batch, net).heads[:, :, 0]
        for net in (lwf.teacher.module, with_it.before)
    )  # type: ignore[index]
    own = gradients(5.0 * Gaussian(2).kl(z_then, z).mean(), with_it.before)
    assert max(float(g.abs().max()) for g in own) > 1e-3
    for total, plain, part in zip(with_it.gradient, without.gradient, own, strict=True):
        torch.testing.assert_close(total, plain + part, rtol=1e-4, atol=1e-6)
