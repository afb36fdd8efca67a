"""MAML: initial weights with a low loss after adaptation to a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from everloop.loop.learners.learner import Learner
from everloop.loop.model import Model
from everloop.loop.pretraining.base import Loss, Pretraining


class MAML(Pretraining):
    """Meta-training that minimizes the loss after adaptation to a task.

        w <- Adam step on w with the gradient d L(w') / d w       (Finn et al. 2017, algorithm 2)

    w' are the weights after `adaptation_steps` steps of plain gradient descent on a task, and L is
    the loss on other examples of that task. Each iteration uses one task. The gradient includes the
    second-order terms of the adaptation steps. The paper's experiments use Adam too (section 5.1).

    Args:
        tasks: IDs of the tasks for meta-training, at least one. For a fair result choose tasks that
            are not learned afterwards; with all tasks the result is only an upper bound.
        inner_lr: Learning rate of the adaptation steps within a task, 0 or more.
        outer_lr: Learning rate of Adam on the initial weights, 0 or more.
        adaptation_steps: Adaptation steps on a task in each iteration, 1 or more.
        iterations: Iterations of meta-training before the first task, 0 or more; 0 is plain
            training.
        batches: Batches of the world averaged in each loss of an iteration, 1 or more.
        seed: Seed for the tasks and examples drawn in meta-training, 0 or more.
    """

    name = "maml"

    outer_losses = 1

    def __init__(
        self,
        tasks: Sequence[int] = (),
        inner_lr: float = 0.05,
        outer_lr: float = 1e-3,
        adaptation_steps: int = 5,
        iterations: int = 200,
        batches: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, inner_lr, outer_lr, adaptation_steps, iterations, batches, seed)

    def run(self, learner: Learner) -> None:
        self.adam = torch.optim.Adam(learner.weights().values(), self.outer_lr, fused=True)
        super().run(learner)

    def improve(self, model: Model, losses: Sequence[Loss]) -> None:
        for w, g in zip(model.weights().values(), self.gradient(model, losses), strict=True):
            w.grad = g
        self.adam.step()
        self.adam.zero_grad()

    def gradient(self, model: Model, losses: Sequence[Loss]) -> Sequence[Tensor | None]:
        """Return d L(w') / d w for every weight; None for weights that L does not depend on."""
        # The faster attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            adapted = self.adapted(model, losses[: self.adaptation_steps], create_graph=True)
            weights = list(model.weights().values())
            return torch.autograd.grad(losses[-1](adapted), weights, allow_unused=True)
