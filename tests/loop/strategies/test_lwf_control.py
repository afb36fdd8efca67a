"""LwF in PPO: its gradient is added to PPO's."""

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
from strategy_helpers import gaussian_kl
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
    """Records the gradient, weights and batch of the first update after `armed` is set."""

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
    """Record the first update of the second task, from weights perturbed after the first task."""
    recorder = GradientRecorder()
    learner.attach([*strategies, recorder])
    learner.model.set_random_seed(0)
    for strategy in strategies:
        strategy.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 32)
    for strategy in strategies:
        strategy.end_task(learner.world.tasks[0], [], learner)
        strategy.begin_task(learner.world.tasks[1], learner)
    perturb(learner.module, 1, 0.05)
    recorder.armed = True
    learner.model.set_random_seed(3)
    learner.learn([1], 32)
    return recorder


def test_in_ppo_the_gradient_of_lwf_is_added_to_ppos() -> None:
    """The gradients with and without LwF, for equal weights and minibatches, differ by LwF's."""
    lwf = LwF(5.0)
    with_lwf, without = first_update(control_learner(), [lwf]), first_update(control_learner(), [])
    assert same(weights(with_lwf.before), weights(without.before))
    observer, then = control_learner(), lwf.teacher.module
    outputs = [observer.outputs(with_lwf.batch, net) for net in (then, with_lwf.before)]
    written = 5.0 * gaussian_kl(*outputs)
    own = gradients(written, with_lwf.before)
    assert max(float(g.abs().max()) for g in own) > 1e-3
    for total, plain, part in zip(with_lwf.gradient, without.gradient, own, strict=True):
        torch.testing.assert_close(total, plain + part, rtol=1e-4, atol=1e-6)


def test_in_ppo_lwf_distils_the_heads_of_past_tasks() -> None:
    """With one head per task, the past task's head is distilled on the new task's observations."""

    def heads(observation_space: Any, action_space: Any) -> nn.Module:
        return agent(observation_space, action_space, head_per_task=True)

    def learner() -> SB3Learner:
        return SB3Learner(plant(task_cue=True), heads, parameters=PPO_PARAMETERS, device="cpu")

    lwf = LwF(5.0)
    with_lwf, without = first_update(learner(), [lwf]), first_update(learner(), [])
    observer = learner()
    z_then, z = (
        observer.forward(with_lwf.batch, net).heads[:, :, 0]
        for net in (lwf.teacher.module, with_lwf.before)
    )  # type: ignore[index]
    own = gradients(5.0 * Gaussian(2).kl(z_then, z).mean(), with_lwf.before)
    assert max(float(g.abs().max()) for g in own) > 1e-3
    for total, plain, part in zip(with_lwf.gradient, without.gradient, own, strict=True):
        torch.testing.assert_close(total, plain + part, rtol=1e-4, atol=1e-6)
