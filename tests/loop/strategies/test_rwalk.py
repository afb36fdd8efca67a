"""RWalk against a reference with two weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from loop_helpers import (
    distance,
    update,
    vector_batch,
)
from strategy_helpers import (
    Named,
    Regression,
    added_gradient,
    classifier,
    penalty_gradient,
    regression_batches,
)
from torch import Tensor

from everloop.loop import Batch, RWalk


class ReferenceRWalk:
    """RWalk with two weights, as in the paper: equations 6 and 8, sections 4.1 and 4.3."""

    def __init__(self, strength: float, interval: int, alpha: float, w: Tensor) -> None:
        self.strength = strength
        self.interval = interval
        self.alpha = alpha
        self.w = w
        self.fisher: Tensor | None = None
        self.past: Tensor | None = None
        self.importance, self.anchor = torch.zeros(2).double(), torch.zeros(2).double()

    def learn(self, batches: Sequence[Batch]) -> None:
        score = torch.zeros(2).double()
        for first in range(0, len(batches), self.interval):
            x = batches[first].obs["x"][0]
            now = (x**2).mean(0)
            self.fisher = (
                now if self.fisher is None else self.alpha * now + (1 - self.alpha) * self.fisher
            )
            start, drop = self.w, torch.zeros(2).double()
            for batch in batches[first : first + self.interval]:
                x, y = batch.obs["x"][0], batch.target[0, :, 0]  # type: ignore[index]
                own = -((y - x @ self.w)[:, None] * x).mean(0)
                after = self.w - 0.1 * (
                    own + 2 * self.strength * self.importance * (self.w - self.anchor)
                )
                drop -= own * (after - self.w)
                self.w = after
            score += drop.clamp(min=0) / (0.5 * self.fisher * (self.w - start) ** 2 + 1e-3)
        assert self.fisher is not None
        scaled = score / score.max()
        self.past = scaled if self.past is None else (self.past + scaled) / 2
        self.importance, self.anchor = self.fisher / self.fisher.max() + self.past, self.w


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("interval", [1, 2, 3, 50])
def test_rwalk_equals_the_reference_over_three_tasks(interval: int, alpha: float) -> None:
    learner, strategy = Regression(), RWalk(0.2, interval, alpha)
    learner.attach([strategy])
    reference = ReferenceRWalk(0.2, interval, alpha, learner.w)
    for task in range(3):
        batches = regression_batches(task, 7)
        strategy.begin_task(Named(task), learner)
        for batch in batches:
            learner.take_step(batch)
        strategy.end_task(Named(task), batches, learner)
        reference.learn(batches)
        torch.testing.assert_close(learner.w, reference.w, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            strategy.penalty.precision["layers.weight"][0],
            reference.importance,
            rtol=1e-11,
            atol=1e-12,
        )
        torch.testing.assert_close(
            strategy.penalty.anchor["layers.weight"][0], reference.anchor, rtol=1e-12, atol=1e-12
        )
    assert float((reference.importance[0] - reference.importance[1]).abs()) > 0.005


def test_rwalks_importance_after_one_step() -> None:
    """x = (1, 2), y = 1, w = 0, lr = 0.1: g = -(1, 2), step -0.1 g, omega 0.1 (1, 4), F (1, 4)."""
    learner, strategy = Regression(), RWalk(1.0, interval=1)
    learner.move([0.0, 0.0])
    learner.attach([strategy])
    batch = Batch(
        {"x": torch.tensor([[[1.0, 2.0]]]).double()},
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, 1, 1).double(),
    )
    learner.take_step(batch)
    strategy.end_task(Named(), [batch], learner)
    score = [0.1 / (0.5 * 1 * 0.01 + 1e-3), 0.4 / (0.5 * 4 * 0.04 + 1e-3)]  # 16.7 and 4.9
    expected = torch.tensor([0.25 + 1.0, 1.0 + score[1] / score[0]]).double()
    torch.testing.assert_close(
        strategy.penalty.precision["layers.weight"][0], expected, rtol=1e-6, atol=0.0
    )
    assert strategy.penalty.anchor["layers.weight"][0].tolist() == [0.1, 0.2]


def test_the_new_fisher_has_weight_alpha() -> None:
    """F^t = alpha F + (1 - alpha) F^(t-1), alpha = 0.9 (section 4.1 and the authors' code)."""
    learner, strategy = Regression(), RWalk(interval=1)
    learner.attach([strategy])
    for x in (1.0, 2.0, 3.0):
        batch = Batch(
            {"x": torch.tensor([[[x, 0.0]]]).double()},
            torch.ones(1, 1, dtype=torch.bool),
            torch.ones(1, 1, 1).double(),
        )
        learner.take_step(batch)
    assert strategy.fisher["layers.weight"][0].tolist() == pytest.approx(
        [0.9 * 9 + 0.1 * (0.9 * 4 + 0.1 * 1), 0.0]
    )


def test_rwalk_scales_fisher_and_scores_to_at_most_1() -> None:
    learner = classifier("mlp")[0]
    strategy = RWalk(interval=2)
    learner.attach([strategy])
    for task in range(2):
        batch = vector_batch(30, 4, 3, seed=task)
        for _ in range(5):
            update(learner, batch)
        strategy.end_task(Named(task), [batch], learner)
        fisher = max(float(F.max()) for F in strategy.fisher.values())
        parts = [strategy.penalty.precision[n] - F / fisher for n, F in strategy.fisher.items()]
        largest = max(float(s.max()) for s in parts)
        assert (
            largest == pytest.approx(1.0, rel=1e-9) if task == 0 else 0.5 <= largest <= 1.0 + 1e-9
        )
        assert min(float(s.min()) for s in parts) > -1e-12


def test_rwalk_adds_the_gradient_of_its_penalty() -> None:
    """strength * sum_i (F_i + s_i) (w_i - w*_i)^2"""
    learner, strategy = Regression(), RWalk(0.7, interval=2)
    learner.attach([strategy])
    batches = regression_batches(0, 5)
    for batch in batches:
        learner.take_step(batch)
    strategy.end_task(Named(), batches, learner)
    reference = ReferenceRWalk(0.7, 2, 0.9, torch.tensor([0.3, -0.2]).float().double())
    reference.learn(batches)
    learner.move([5.0, -7.0])
    expected = penalty_gradient(
        learner,
        0.7,
        {"layers.weight": reference.importance[None]},
        {"layers.weight": reference.anchor[None]},
    )
    assert distance(added_gradient(learner, strategy, batches[0]), expected) < 1e-10
