"""L2: its anchor, and the rate at which L2 and L2Init return weights to their anchors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop_helpers import distance, gradients, weights
from quadratic_helpers import Parabola, descend, penalty
from strategy_helpers import (
    Named,
    added_gradient,
    make_learner,
    move_weights,
    two_layers,
)

from everloop.loop import L2, L2Init


def test_l2_anchors_only_the_weights_of_the_last_task() -> None:
    learner, strategy = make_learner(two_layers()), L2(0.7)
    # before the first task's end there is no anchor
    assert not any(bool(g.any()) for g in added_gradient(learner, strategy))
    for task in range(3):
        move_weights(learner, 10 + task)
        strategy.begin_task(Named(task), learner)
        last = move_weights(learner, 20 + task)
        strategy.end_task(Named(task), [], learner)
    move_weights(learner, 30)
    ones = {n: torch.ones_like(c) for n, c in last.items()}
    expected = [0.7 * g for g in gradients(penalty(learner, [(ones, last)]), learner.module)]
    assert distance(added_gradient(learner, strategy), expected) < 1e-14
    assert (
        distance(
            expected,
            [0.7 * (w - c) for w, c in zip(weights(learner.module), last.values(), strict=True)],
        )
        < 1e-14
    )


@pytest.mark.parametrize(
    ("strategy", "rate"), [(L2(0.6), 0.6), (L2Init(0.6), 1.2)], ids=["l2", "l2 init"]
)
def test_on_a_flat_loss_weights_return_to_the_anchor_geometrically(
    strategy: Any, rate: float
) -> None:
    """w - c shrinks by 1 - lr * rate with every step."""
    learner = make_learner(two_layers(), lambda p: torch.optim.SGD(p, lr=0.25), Parabola)
    anchor = move_weights(learner, 0)
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    strategy.end_task(Named(), [], learner)
    start = move_weights(learner, 1)
    descend(learner, None, 7)
    expected = [anchor[n] + (1 - 0.25 * rate) ** 7 * (start[n] - anchor[n]) for n in start]
    assert distance(weights(learner.module), expected) < 1e-14
