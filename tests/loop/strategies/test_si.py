"""SI: its path integrals, its importance and its penalty."""

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


class TwoVectors(nn.Module):
    """Two weight vectors away from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.5, 3.0, -1.0], dtype=torch.float64))


def two_vectors(optimizer: Callable[[Any], torch.optim.Optimizer]) -> FixedLearner:
    module = TwoVectors()
    return FixedLearner(module, Gaussian(1), optimizer(module))


Slope = dict[str, Tensor]
UNUSED_BATCH = vector_batch(1, 1, 1)  # the loss does not depend on it
SLOPE: Slope = {
    "a": torch.tensor([1.0, -0.5]).double(),
    "b": torch.tensor([2.0, -1.0, 0.25]).double(),
}


def linear_loss(learner: FixedLearner, slope: Slope) -> Tensor:
    """A loss linear in the weights."""
    return sum((g * learner.weights()[n]).sum() for n, g in slope.items())  # type: ignore[return-value]


def uphill(module: TwoVectors) -> torch.optim.Optimizer:
    """Gradient descent in a and gradient ascent in b."""
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


@pytest.mark.parametrize("limit", [None, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_for_a_linear_loss_the_path_integral_is_the_loss_drop(
    optimizer: str, limit: float | None
) -> None:
    """omega_i = -g_i (w_i after - w_i before) for every optimizer; their sum is the loss drop."""
    learner, strategy = two_vectors(OPTIMIZERS[optimizer]), SI()
    learner.max_grad_norm = limit
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    then, before = snapshot(learner), float(linear_loss(learner, SLOPE).detach())
    for _ in range(9):
        learner.updater.step(linear_loss(learner, SLOPE), UNUSED_BATCH)
    omega = strategy.path.omega
    for name, w in snapshot(learner).items():
        torch.testing.assert_close(
            omega[name], -SLOPE[name] * (w - then[name]), rtol=1e-12, atol=1e-12
        )
    drop = before - float(linear_loss(learner, SLOPE).detach())
    assert float(sum(o.sum() for o in omega.values())) == pytest.approx(drop, rel=1e-12)
    assert abs(drop) > 0.1
    if optimizer == "sgd":
        assert all(bool((o > 0).all()) for o in omega.values())


def omega_and_loss_drop(steepness: Slope, steps: int, time: float = 1.0) -> tuple[Weights, Weights]:
    """omega and each weight's drop of h_i / 2 w_i^2, after gradient descent over `time`."""
    learner = two_vectors(lambda m: torch.optim.SGD(m.parameters(), lr=time / steps))
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
    ids=["straight path", "curved path"],
)
def test_for_a_quadratic_loss_path_integrals_converge_to_the_loss_drop(
    steepness: Slope,
) -> None:
    """The error is of second order in a step: about lr h / 2 of the drop, halved with the rate."""
    errors = []
    for steps in (100, 200, 400):
        omega, drop = omega_and_loss_drop(steepness, steps)
        relative = [(omega[n] - drop[n]) / drop[n] for n in omega]
        assert all(
            bool((r > 0).all()) and bool((r < 1.1 / steps * steepness[n] / 2).all())
            for n, r in zip(omega, relative, strict=True)
        )
        errors.append(torch.cat(relative))
    for coarse, fine in pairwise(errors):
        torch.testing.assert_close(fine / coarse, torch.full_like(fine, 0.5), rtol=0.02, atol=0.0)


def test_a_networks_path_integrals_sum_to_the_loss_drop() -> None:
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


def test_path_integrals_continue_over_steps_without_a_gradient() -> None:
    """Weights are identified by name, so replacing a parameter makes no difference."""
    learner, path = two_vectors(OPTIMIZERS["sgd"]), PathIntegral()
    expected = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    g = torch.Generator().manual_seed(0)
    for step, moving in enumerate(["a", "ab", "b", "ab", "ab", "", "b", "ab"]):
        if step == 4:
            learner.module.a = nn.Parameter(learner.module.a.detach().clone())
        for name, p in learner.weights().items():
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) if name in moving else None
        path.before_step(learner)
        for name, p in learner.weights().items():
            delta = torch.randn(p.shape, generator=g, dtype=p.dtype)
            if p.grad is not None:
                expected[name] -= p.grad * delta
            with torch.no_grad():
                p += delta
        path.after_step()
    for name, omega in expected.items():
        torch.testing.assert_close(path.omega[name], omega, rtol=1e-12, atol=1e-12)


def learn_linear_task(
    learner: FixedLearner, strategy: SI, slope: Slope, steps: int = 6
) -> tuple[Weights, Weights, Weights]:
    """Learn a task with a linear loss; returns the weights before and after it, and omega."""
    strategy.begin_task(Named(), learner)
    then = snapshot(learner)
    for _ in range(steps):
        learner.updater.step(linear_loss(learner, slope), UNUSED_BATCH)
    omega = {n: o.clone() for n, o in strategy.path.omega.items()}
    strategy.end_task(Named(), [], learner)
    return then, snapshot(learner), omega


@pytest.mark.parametrize("damping", [1e-3, 0.1, 5.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_si_importance_is_the_damped_path_integral_summed_over_tasks(
    optimizer: str, damping: float
) -> None:
    """Omega_i = sum_k max(0, -g_ki Delta_ki) / (Delta_ki^2 + xi), without changes between tasks."""
    learner, strategy = two_vectors(OPTIMIZERS[optimizer]), SI(0.05, damping)
    learner.attach([strategy])
    importance = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    for task in range(3):
        slope = {n: g * (1 + 0.5 * task) for n, g in SLOPE.items()}
        then, now, _ = learn_linear_task(learner, strategy, slope)
        for n, w in now.items():
            delta = w - then[n]
            importance[n] += (-slope[n] * delta).clamp(min=0) / (delta**2 + damping)
        move_weights(learner, task)
        expected = penalty_gradient(learner, 0.05, importance, now)
        assert distance(added_gradient(learner, strategy), expected) < 1e-11 / damping
        assert max(float(e.abs().max()) for e in expected) > 1e-3


@pytest.mark.parametrize("boundary", ["end", "begin"])
def test_a_path_counts_once(boundary: str) -> None:
    """For tasks that end together, and if a task begins again without an end."""
    learner, strategy = two_vectors(OPTIMIZERS["sgd"]), SI(0.05)
    learner.attach([strategy])
    if boundary == "begin":
        strategy.begin_task(Named(), learner)
        for _ in range(3):
            learner.updater.step(linear_loss(learner, SLOPE), UNUSED_BATCH)
    then, now, _ = learn_linear_task(learner, strategy, SLOPE)
    if boundary == "end":
        strategy.end_task(Named(1), [], learner)
    for name, P in strategy.penalty.precision.items():
        delta = now[name] - then[name]
        expected = (-SLOPE[name] * delta).clamp(min=0) / (delta**2 + strategy.damping)
        torch.testing.assert_close(P, expected)


def test_si_gives_no_importance_to_weights_that_went_uphill() -> None:
    learner, strategy = two_vectors(uphill), SI()
    learner.attach([strategy])
    learn_linear_task(learner, strategy, SLOPE)
    assert not bool(strategy.penalty.precision["b"].any())
    assert bool((strategy.penalty.precision["a"] > 0).all())


def test_sis_path_integral_leaves_out_its_own_penalty() -> None:
    """Under a strong penalty omega_i is still minus the task loss's slope times the distance."""
    learner, strategy = two_vectors(OPTIMIZERS["sgd"]), SI(strength=3.0)
    learner.attach([strategy])
    learn_linear_task(learner, strategy, SLOPE)
    opposite = {n: -g for n, g in SLOPE.items()}
    then, now, omega = learn_linear_task(learner, strategy, opposite)
    for name in omega:
        delta = now[name] - then[name]
        torch.testing.assert_close(omega[name], -opposite[name] * delta, rtol=1e-12, atol=1e-12)
        without_penalty = -0.1 * 6 * opposite[name]
        assert bool(((delta - without_penalty).abs() > 0.01).all())
