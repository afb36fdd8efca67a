"""A quadratic loss, an explicit quadratic penalty, and gradient descent."""

from __future__ import annotations

from typing import Any

from loop_helpers import FixedLearner, vector_batch
from strategy_helpers import (
    TaskAgnosticLearner,
)
from torch import Tensor

from everloop.loop import Batch

Quadratics = list[tuple[dict[str, Tensor], dict[str, Tensor]]]  # (precision, anchor) of each


class Parabola(TaskAgnosticLearner):
    """loss = 1/2 sum_i steepness (w_i - best)^2 for every batch; 0 until steepness is set."""

    steepness: Any = 0.0
    best: Any = 0.0

    def loss(self, batch: Batch | None = None) -> Tensor:
        return sum(
            (0.5 * self.steepness * (p - self.best) ** 2).sum() for p in self.module.parameters()
        )  # type: ignore[return-value]


def penalty(learner: FixedLearner, quadratics: Quadratics) -> Tensor:
    """1/2 sum_k sum_i P_ki (w_i - c_ki)^2."""
    w = learner.weights()
    return sum(0.5 * (P[n] * (w[n] - c[n]) ** 2).sum() for P, c in quadratics for n in P)  # type: ignore[return-value]


def descend(learner: Any, batch: Batch | None, steps: int) -> None:
    for _ in range(steps):
        learner.updater.step(learner.loss(batch), vector_batch(1, 1, 1))
