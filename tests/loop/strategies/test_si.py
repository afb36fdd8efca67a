"""Path integrals and SI: the drop of the loss, to the last digit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from loop_helpers import (
    FixedLearner,
    distance,
    update,
    vector_batch,
)
from strategy_helpers import (
    Named,
    Weights,
    added_gradient,
    classifier,
    move_weights,
    penalty_gradient,
    snapshot,
)
from torch import Tensor, nn

from everloop.loop import SI, Gaussian
from everloop.loop.strategies.parts.path_integral import PathIntegral


class Points(nn.Module):
    """Two vectors, far from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.5, 3.0, -1.0], dtype=torch.float64))


def points(optimizer: Callable[[Any], torch.optim.Optimizer]) -> FixedLearner:
    module = Points()
    return FixedLearner(module, Gaussian(1), optimizer(module))


Slope = dict[str, Tensor]
NOTHING = vector_batch(1, 1, 1)  # the loss does not depend on it
SLOPE: Slope = {
    "a": torch.tensor([1.0, -0.5]).double(),
    "b": torch.tensor([2.0, -1.0, 0.25]).double(),
}


def line(learner: FixedLearner, slope: Slope) -> Tensor:
    """A loss that is linear in the weights."""
    return sum((g * learner.weights()[n]).sum() for n, g in slope.items())  # type: ignore[return-value]


def uphill(module: Points) -> torch.optim.Optimizer:
    """Descends in a, ascends in b."""
    return torch.optim.SGD(
        [{"params": [module.a]}, {"params": [module.b], "maximize": True}], lr=0.1
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "weight decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.2),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1),
    "uphill": uphill,
}


@pytest.mark.parametrize("limit", [None, 0.3], ids=["", "clipped"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_of_a_linear_loss_the_path_integral_is_the_drop_exactly(
    optimizer: str, limit: float | None
) -> None:
    """omega_i = - g_i (w_i now - w_i then), whoever takes the steps and however they are clipped;
    all together the loss's drop.
    """
    learner, strategy = points(OPTIMIZERS[optimizer]), SI()
    learner.max_grad_norm = limit
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    then, before = snapshot(learner), float(line(learner, SLOPE).detach())
    for _ in range(9):
        learner.updater.step(line(learner, SLOPE), NOTHING)
    omega = strategy.path.omega
    for name, w in snapshot(learner).items():
        torch.testing.assert_close(
            omega[name], -SLOPE[name] * (w - then[name]), rtol=1e-12, atol=1e-12
        )
    drop = before - float(line(learner, SLOPE).detach())
    assert float(sum(o.sum() for o in omega.values())) == pytest.approx(drop, rel=1e-12)
    assert abs(drop) > 0.1
    if optimizer == "sgd":
        assert all(bool((o > 0).all()) for o in omega.values())


def drops(steepness: Slope, steps: int, time: float = 1.0) -> tuple[Weights, Weights]:
    """omega, and each weight's own drop of sum_i h_i / 2 w_i^2, after gradient flow for `time` in
    so many steps.
    """
    learner = points(lambda m: torch.optim.SGD(m.parameters(), lr=time / steps))
    path = PathIntegral()
    then = snapshot(learner)
    for _ in range(steps):
        learner.optimizer.zero_grad()
        sum((0.5 * h * learner.weights()[n] ** 2).sum() for n, h in steepness.items()).backward()  # type: ignore[union-attr]
        path.before_step(learner)
        learner.optimizer.step()
        path.after_step()
    return path.omega, {
        n: 0.5 * steepness[n] * (then[n] ** 2 - w**2) for n, w in snapshot(learner).items()
    }


@pytest.mark.parametrize(
    "steepness",
    [
        {"a": torch.full((2,), 2.0), "b": torch.full((3,), 2.0)},
        {"a": torch.tensor([0.5, 2.0]), "b": torch.tensor([1.0, 3.0, 0.1])},
    ],
    ids=["a straight path", "a bent path"],
)
def test_of_a_quadratic_loss_the_path_integral_tends_to_the_drop_as_steps_get_small(
    steepness: Slope,
) -> None:
    """The error is the second-order term, h / 2 sum of squared steps: at most lr h / 2 of the drop
    or so, and half with half the step.
    """
    errors = []
    for steps in (100, 200, 400):
        omega, drop = drops(steepness, steps)
        relative = [(omega[n] - drop[n]) / drop[n] for n in omega]
        assert all(
            bool((r > 0).all()) and bool((r < 1.1 / steps * steepness[n] / 2).all())
            for n, r in zip(omega, relative, strict=True)
        )
        errors.append(torch.cat(relative))
    for coarse, fine in pairwise(errors):
        torch.testing.assert_close(fine / coarse, torch.full_like(fine, 0.5), rtol=0.02, atol=0.0)


def test_of_a_network_all_path_integrals_together_are_the_drop_of_the_loss() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(30, 4, 3)
    learner.optimizer.param_groups[0]["lr"] = 0.02
    strategy = SI()
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    losses = [update(learner, batch) for _ in range(100)]
    drop = losses[0] - float(learner.loss(batch).detach())
    assert float(sum(o.sum() for o in strategy.path.omega.values())) == pytest.approx(
        drop, rel=0.02
    )
    assert drop > 0.05
    strategy.end_task(Named(), [batch], learner)
    assert all(float(P.max()) > 0 for P in strategy.penalty.precision.values())


def test_a_path_goes_on_through_steps_in_which_weights_have_no_gradient() -> None:
    """Also where a weight stands in another tensor than before: it is known by its name."""
    learner, path = points(OPTIMIZERS["sgd"]), PathIntegral()
    expected = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    g = torch.Generator().manual_seed(0)
    for step, moving in enumerate(["a", "ab", "b", "ab", "ab", "", "b", "ab"]):
        if step == 4:
            learner.module.a = nn.Parameter(learner.module.a.detach().clone())
        for name, p in learner.weights().items():
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) if name in moving else None
        path.before_step(learner)
        for name, p in learner.weights().items():
            way = torch.randn(p.shape, generator=g, dtype=p.dtype)
            if p.grad is not None:
                expected[name] -= p.grad * way
            with torch.no_grad():
                p += way
        path.after_step()
    for name, omega in expected.items():
        torch.testing.assert_close(path.omega[name], omega, rtol=1e-12, atol=1e-12)


def play(
    learner: FixedLearner, strategy: SI, slope: Slope, steps: int = 6
) -> tuple[Weights, Weights, Weights]:
    """A task with a linear loss: weights before and after it, and omega when it ends."""
    strategy.begin_task(Named(), learner)
    then = snapshot(learner)
    for _ in range(steps):
        learner.updater.step(line(learner, slope), NOTHING)
    omega = {n: o.clone() for n, o in strategy.path.omega.items()}
    strategy.end_task(Named(), [], learner)
    return then, snapshot(learner), omega


@pytest.mark.parametrize("damping", [1e-3, 0.1, 5.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_si_importance_is_the_drop_per_squared_distance_and_damping_summed_over_tasks(
    optimizer: str, damping: float
) -> None:
    """Omega_i = sum_k max(0, - g_ki Delta_ki) / (Delta_ki^2 + xi); what moves the weights between
    tasks counts for nothing.
    """
    learner, strategy = points(OPTIMIZERS[optimizer]), SI(0.05, damping)
    learner.attach([strategy])
    importance = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    for task in range(3):
        slope = {n: g * (1 + 0.5 * task) for n, g in SLOPE.items()}
        then, now, _ = play(learner, strategy, slope)
        for n, w in now.items():
            way = w - then[n]
            importance[n] += (-slope[n] * way).clamp(min=0) / (way**2 + damping)
        move_weights(learner, task)
        expected = penalty_gradient(learner, 0.05, importance, now)
        assert distance(added_gradient(learner, strategy), expected) < 1e-11 / damping
        assert max(float(e.abs().max()) for e in expected) > 1e-3


def test_si_holds_weights_that_went_uphill_not_at_all() -> None:
    learner, strategy = points(uphill), SI()
    learner.attach([strategy])
    play(learner, strategy, SLOPE)
    assert not bool(strategy.penalty.precision["b"].any())
    assert bool((strategy.penalty.precision["a"] > 0).all())


def test_sis_own_pull_changes_the_way_but_is_no_part_of_the_gradient_along_it() -> None:
    """In the second task, under a strong pull, omega_i is still the loss's own slope times the way
    gone.
    """
    learner, strategy = points(OPTIMIZERS["sgd"]), SI(strength=3.0)
    learner.attach([strategy])
    play(learner, strategy, SLOPE)
    opposite = {n: -g for n, g in SLOPE.items()}
    then, now, omega = play(learner, strategy, opposite)
    for name in omega:
        way = now[name] - then[name]
        torch.testing.assert_close(omega[name], -opposite[name] * way, rtol=1e-12, atol=1e-12)
        assert bool(
            ((way + 0.1 * 6 * opposite[name]).abs() > 0.01).all()
        )  # without the pull it would be - lr steps g
