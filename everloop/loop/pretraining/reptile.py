"""Reptile: initial weights close to weights adapted to single tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from everloop.loop.model import Model
from everloop.loop.pretraining.base import Loss, Pretraining


class Reptile(Pretraining):
    """Meta-training that moves the initial weights towards weights adapted to single tasks.

        w <- w + outer_lr (w' - w)                                  (Nichol et al. 2018, eq. 1)

    w' are the weights after `adaptation_steps` steps of plain gradient descent on a task.

    Args:
        tasks: IDs of the tasks for meta-training, at least one. For a fair result choose tasks that
            are not learned afterwards; with all tasks the result is only an upper bound.
        inner_lr: Learning rate of the adaptation steps within a task, 0 or more.
        outer_lr: Step size of the initial weights towards the adapted ones, 0 or more.
        adaptation_steps: Adaptation steps on a task in each iteration, 1 or more.
        iterations: Iterations of meta-training before the first task, 0 or more; 0 is plain
            training.
        batches: Batches of the world averaged in each loss of an iteration, 1 or more.
        seed: Seed for the tasks and examples drawn in meta-training, 0 or more.
    """

    name = "reptile"

    def improve(self, model: Model, losses: Sequence[Loss]) -> None:
        adapted = self.adapted(model, losses[: self.adaptation_steps], create_graph=False)
        with torch.no_grad():
            for name, w in model.weights().items():
                w.lerp_(adapted[name], self.outer_lr)
