"""Properties that GEM and A-GEM share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loop_helpers import (
    control_learner,
    same,
    weights,
)
from projection_helpers import (
    BOTH_METHODS,
    CLASSES,
    INPUTS,
    close,
    cross_entropy_gradient,
    give_gradient,
    gradient_of,
    learner_with_memory,
    next_task_draws,
)

from everloop.loop import AGEM, GEM, Batch


@BOTH_METHODS
@pytest.mark.parametrize("seed", range(5))
def test_a_small_step_does_not_raise_the_loss_of_past_tasks(
    kind: type[AGEM | GEM], seed: int
) -> None:
    """Along the edited gradient the rise is of second order; along the plain one, of first."""
    strategy, rate = kind(capacity=30, batch_size=6, seed=seed), 1e-4
    learner = learner_with_memory(strategy, [0])
    (drawn,) = next_task_draws(strategy, learner, [[0]])
    r = cross_entropy_gradient(learner, drawn)
    g = give_gradient(learner, seed)
    g -= (g @ r / (r @ r) + 0.5) * r
    before, start = float(learner.loss(drawn).detach()), weights(learner.module)

    def rise() -> float:
        for p in learner.module.parameters():
            p.data -= rate * p.grad  # type: ignore[operator]
        after = float(learner.loss(drawn).detach())
        for p, w in zip(learner.module.parameters(), start, strict=True):
            p.data.copy_(w)
        return after - before

    for p, part in zip(learner.module.parameters(), np.split(g, [INPUTS * CLASSES]), strict=True):
        p.grad = torch.from_numpy(part).view_as(p).clone()
    assert rise() == pytest.approx(rate * 0.5 * (r @ r), rel=0.1)
    strategy.edit_gradients(None, learner)
    assert rise() <= rate**2 * float(g @ g)


@BOTH_METHODS
def test_without_a_past_task_the_gradient_is_unchanged(kind: type[AGEM | GEM]) -> None:
    learner = learner_with_memory(kind(capacity=30), [], current=0)
    g = give_gradient(learner, 0)
    learner.strategies[0].edit_gradients(None, learner)
    assert (gradient_of(learner) == g).all()


@BOTH_METHODS
def test_weights_without_a_gradient_are_left_out_of_the_constraints(
    kind: type[AGEM | GEM],
) -> None:
    strategy = kind(capacity=30, batch_size=6)
    learner = learner_with_memory(strategy, [0])
    weight, bias = learner.module.parameters()
    (drawn,) = next_task_draws(strategy, learner, [[0]])
    r = cross_entropy_gradient(learner, drawn)[: INPUTS * CLASSES]
    g = np.random.default_rng(0).standard_normal(len(r)) - 2 * r
    weight.grad, bias.grad = torch.from_numpy(g).view_as(weight).clone(), None
    strategy.edit_gradients(None, learner)
    assert bias.grad is None
    assert g @ r < 0
    close(weight.grad.flatten(), g - (g @ r) / (r @ r) * r, 1e-8)  # type: ignore[union-attr]


@BOTH_METHODS
def test_editing_gradients_changes_neither_weights_nor_memory(kind: type[AGEM | GEM]) -> None:
    strategy = kind(capacity=30, batch_size=6)
    learner = learner_with_memory(strategy, [0, 1])
    before = weights(learner.module)
    items = {name: x.copy() for name, x in strategy.memory.items.items()}
    give_gradient(learner, 1)
    strategy.edit_gradients(None, learner)
    assert same(weights(learner.module), before)
    assert all((x == items[name]).all() for name, x in strategy.memory.items.items())


@BOTH_METHODS
def test_in_control_edited_gradients_do_not_conflict_with_past_policies(
    kind: type[AGEM | GEM],
) -> None:
    """During PPO's training, `edit_gradients` removes the conflicts of the gradient."""
    learner = control_learner(max_grad_norm=float("inf"))
    settings: dict[str, Any] = {"margin": 0.0} if kind is GEM else {}
    strategy = kind(capacity=60, batch_size=16, **settings)
    found: list[tuple[float, float]] = []
    edit = strategy.edit_gradients

    def edit_and_record(batch: Batch, learner: Any) -> None:
        drawn = next_task_draws(strategy, learner, [[0]] if len(strategy.past) else [])
        live = [p for p in learner.module.parameters() if p.grad is not None]
        before = [p.grad.clone() for p in live]
        edit(batch, learner)
        for stored in drawn:
            past = torch.autograd.grad(learner.loss(stored), live, allow_unused=True)
            dots = [
                sum(float((g * r).sum()) for g, r in zip(gs, past, strict=True) if r is not None)
                for gs in (before, [p.grad for p in live])
            ]
            found.append((dots[0], dots[1]))

    strategy.edit_gradients = edit_and_record  # type: ignore[method-assign]
    for task in (0, 1):
        learner.attach([strategy])
        strategy.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        strategy.end_task(learner.world.tasks[task], [], learner)
    conflicts = [(before, after) for before, after in found if before < -1e-4]
    assert len(conflicts) >= 2
    assert all(abs(after) < 1e-3 * abs(before) + 1e-6 for before, after in conflicts)
    assert all(before == after for before, after in found if before > 1e-6)
