"""Training of our learners and of unmodified SB3, for tests of strategies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from loop_helpers import gradients, learn_tasks, perturb, rehearsal_loss, weights
from torch import Tensor, nn

from everloop.loop import Batch, Forward, Learner, Strategy, diagonal_fisher

Anchors = Sequence[tuple[Iterable[Tensor], list[Tensor]]]
"""The Fisher information and the weights at the end of each earlier task."""


def ewc_penalty(network: nn.Module, anchors: Anchors, strength: float) -> Tensor:
    """strength / 2 * sum_i F_i (w_i - w*_i)^2, summed over the anchors (F, w*)."""
    total = torch.zeros(())
    for fisher, anchor in anchors:
        for w, f, a in zip(network.parameters(), fisher, anchor, strict=True):
            total = total + (f * (w - a) ** 2).sum()
    return strength / 2 * total


def train_unmodified(
    model: Any,
    network: nn.Module,
    learner: Any,
    tasks: int,
    steps: int,
    world: Any = None,
    empty_buffer: bool = False,
) -> list[list[Tensor]]:
    """Train an SB3 model without our hooks; return the weights of `network` after each task.

    With a `world`, each task adds its anchor to `model.policy.anchors`. `learner` computes the
    Fisher information for it, and learns nothing itself.
    """
    learner.module, model.policy.anchors = network, []
    model.set_random_seed(0)  # building `learner` drew from the global generators
    found = []
    for task in range(tasks):
        if empty_buffer:
            model.replay_buffer.reset()
        model.env.tasks = [task]
        model.learn(steps)
        found.append(weights(network))
        if world is not None:
            batch = learner.rollout(world, [task], 8, seed=task)
            fisher = diagonal_fisher(learner, [batch], by_hooks=False).values()
            model.policy.anchors.append((fisher, weights(network)))
    return found


def train_with_strategies(
    learner: Learner, strategies: list[Strategy], tasks: int, steps: int, world: Any
) -> list[list[Tensor]]:
    """Train our learner with `strategies`; return the weights after each task."""
    learner.attach(strategies)
    learner.seed(0)
    found = []
    for task in range(tasks):
        learn_tasks(learner, [task], steps, world)
        found.append(weights(learner.module))
    return found


class UpdateGradients(Strategy):
    """Records the gradients of the first update after `recording` has been set.

    `total` is the gradient that the optimizer would apply, and `own` is the gradient of the loss of
    `strategy`.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.recording = strategy, False
        self.total: list[Tensor] = []
        self.own: list[Tensor] = []

    def loss(self, fresh: Any, replayed: Any, learner: Learner) -> None:
        self.batch = fresh.batch

    def recall(self, learner: Learner) -> None:
        if not self.recording or self.own or self.strategy is None:
            return
        state = self.strategy.state_dict()
        fresh = Forward(self.batch, learner.forward(self.batch))
        loss = self.strategy.loss(fresh, None, learner)
        loss = rehearsal_loss(self.strategy, learner) if loss is None else loss
        self.strategy.load_state_dict(state, learner)  # the update itself makes the same draws
        assert float(loss.detach()) > 1e-6
        self.own = gradients(loss, learner.module)

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        if self.recording and not self.total:
            self.total = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in learner.module.parameters()
            ]


def gradients_in_task_1(
    learner: Learner, strategy: Strategy | None, steps: int, world: Any
) -> UpdateGradients:
    """The gradients of the first update of task 1, after task 0 was learned with `strategy`."""
    recorder = UpdateGradients(strategy)
    strategies: list[Strategy] = [recorder] if strategy is None else [recorder, strategy]
    train_with_strategies(learner, strategies, 1, steps, world)
    perturb(learner.module, seed=1, size=0.1)  # at the stored outputs, the strategy's loss is 0
    recorder.recording = True
    learner.seed(3)
    learner.learn([1], 32)
    return recorder
