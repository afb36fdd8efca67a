"""Strategies that record what they are given, or do one simple thing."""

from __future__ import annotations

import torch
from torch import Tensor

from everloop.loop import (
    Batch,
    Forward,
    Learner,
    Strategy,
)


class Recorder(Strategy):
    """Records observed batches with their steps, and batches of updates with their rates."""

    def __init__(self) -> None:
        self.observed: list[Batch] = []
        self.updates: list[Batch] = []
        self.rates: list[float] = []
        self.steps: list[int] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        self.observed.append(batch)
        self.steps.append(learner.steps)

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        self.updates.append(batch)

    def after_step(self, batch: Batch, learner: Learner) -> None:
        self.rates.append(learner.optimizer.param_groups[0]["lr"])


class GradientNorms(Strategy):
    """Records the norm of the gradient after the edits of earlier strategies."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        norms = [p.grad.norm() for p in learner.module.parameters() if p.grad is not None]
        self.values.append(float(torch.stack(norms).norm()))


class NotANumber(Strategy):
    """Makes every gradient nan."""

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        for p in learner.module.parameters():
            assert p.grad is not None
            p.grad *= float("nan")


class Decay(Strategy):
    """Weight decay of 0.1, as a loss of the weights alone or as an edit of the gradient."""

    def __init__(self, as_loss: bool) -> None:
        self.as_loss = as_loss

    def loss(
        self, fresh: Forward | None, replayed: Forward | None, learner: Learner
    ) -> Tensor | None:
        if not self.as_loss or fresh is None:
            return None
        return 0.05 * torch.stack([(w**2).sum() for w in learner.weights().values()]).sum()

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        if not self.as_loss:
            for w in learner.weights().values():
                w.grad = 0.1 * w.detach() + (0 if w.grad is None else w.grad)
