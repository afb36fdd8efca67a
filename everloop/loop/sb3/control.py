"""What strategies see of any network that an algorithm of Stable-Baselines3 trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.learners.accompanied import Accompanied
from everloop.loop.strategies.base import Effect, Strategy


class Control(Accompanied):
    """A policy or Q-network, whose stored examples are replayed by policy distillation."""

    def check(self, strategies: Sequence[Strategy]) -> None:
        super().check(strategies)
        for strategy in strategies:
            if strategy.active and Effect.REPLACES_LOSS in strategy.effects:
                raise ValueError(
                    f"{strategy.name} replaces the task loss, but the algorithm needs its own; in "
                    "control use replay"
                )

    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean of KL(target || outputs) over steps: policy distillation.

        This is the loss of stored examples. SB3 computes the algorithm's own loss.
        """
        return self.likelihood.kl(target, outputs).mean()

    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        return self.likelihood.kl(target, outputs).sum(0)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return the network's current outputs in evaluation mode, (T, B, P)."""
        with self.evaluating():
            return self.outputs(batch)

    def observed(self, batch: Batch) -> Tensor | None:
        return batch.action
