"""EWC's proximal step: its closed form and its stability."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loop_helpers import distance, gradients, vector_batch, weights
from quadratic_helpers import Parabola, descend, penalty
from strategy_helpers import (
    Named,
    added_gradient,
    make_learner,
    move_weights,
    one_layer,
    random_like,
    two_layers,
)
from torch import nn

from everloop.loop import EWC, NotFiniteError

SGD = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731


ADAM = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731


def grouped(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.7}], lr=0.03)


@pytest.mark.parametrize("strength", [0.5, 40.0, 1e9])
@pytest.mark.parametrize(
    "optimizer", [SGD, ADAM, grouped], ids=["sgd", "adam", "one rate per group"]
)
def test_a_proximal_step_follows_the_optimizers_step(optimizer: Any, strength: float) -> None:
    """w <- (w + lr lambda P c) / (1 + lr lambda P) after the optimizer's step to w."""
    learner = make_learner(two_layers(), optimizer, Parabola)
    learner.steepness, learner.best = 3.0, 2.0
    plain = copy.deepcopy(learner)
    plain.attach([])
    strategy = EWC(strength, proximal=True)
    P, c = random_like(learner, 0.0, 2.0, 1), random_like(learner, -1.0, 1.0, 2)
    strategy.penalty.add(P, c)
    learner.attach([strategy])
    rates = {p: group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    for _ in range(3):
        plain.module.load_state_dict(learner.module.state_dict())
        for one in (learner, plain):
            one.updater.step(one.loss(), vector_batch(1, 1, 1))
        w = plain.weights()
        lr = {n: rates[p] for n, p in learner.weights().items()}
        expected = [
            (w[n].detach() + lr[n] * strength * P[n] * c[n]) / (1 + lr[n] * strength * P[n])
            for n in w
        ]
        assert distance(weights(learner.module), expected) < 1e-12


def test_a_proximal_step_minimises_distance_plus_penalty() -> None:
    """d/dv [ |v - w|^2 / (2 lr) + lambda / 2 P (v - c)^2 ] = 0 at the weights after the step."""
    learner, strategy = make_learner(two_layers(), grouped), EWC(5.0, proximal=True)
    P, c = random_like(learner, 0.0, 2.0, 1), random_like(learner, -1.0, 1.0, 2)
    strategy.penalty.add(P, c)
    before = move_weights(learner, 3)
    for p in learner.module.parameters():
        p.grad = torch.zeros_like(p)  # weights without a gradient are left alone
    strategy.after_step(vector_batch(1, 1, 1), learner)
    rates = {p: group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    distances = sum(
        ((p - before[n]) ** 2).sum() / (2 * rates[p]) for n, p in learner.weights().items()
    )
    assert (
        max(
            float(g.abs().max())
            for g in gradients(distances + 5.0 * penalty(learner, [(P, c)]), learner.module)
        )
        < 1e-12
    )
    assert distance(weights(learner.module), list(before.values())) > 0.1


@pytest.mark.parametrize("proximal", [True, False])
def test_a_proximal_penalty_moves_weights_an_explicit_one_edits_gradients(
    proximal: bool,
) -> None:
    learner, strategy = make_learner(two_layers()), EWC(5.0, proximal=proximal)
    strategy.penalty.add(random_like(learner, 1.0, 2.0, 1), random_like(learner, 2.0, 3.0, 2))
    added = added_gradient(learner, strategy)
    before = weights(learner.module)
    strategy.after_step(vector_batch(1, 1, 1), learner)
    assert any(bool(g.any()) for g in added) is not proximal
    assert (distance(weights(learner.module), before) > 0.1) is proximal


def test_a_proximal_step_is_stable_where_an_explicit_penalty_diverges() -> None:
    """With strength 1e12 the weights stay at the anchor; explicit steps overshoot ever further."""
    batch, new = vector_batch(30, 4, 3), vector_batch(30, 4, 3, seed=1)
    learner, explicit = make_learner(one_layer()), make_learner(one_layer())
    for one, proximal in ((learner, True), (explicit, False)):
        strategy = EWC(1e12, fisher="exact", proximal=proximal)
        one.attach([strategy])
        strategy.end_task(Named(), [batch], one)
        assert min(float(P.min()) for P in strategy.penalty.precision.values()) > 0.01
    anchor = weights(learner.module)
    descend(learner, new, 50)
    assert distance(weights(learner.module), anchor) < 1e-10
    with pytest.raises(NotFiniteError):
        descend(explicit, new, 50)
    assert max(float(w.abs().max()) for w in weights(explicit.module)) > 1e100


@pytest.mark.parametrize("strength", [0.3, 1.0, 1e4])
@pytest.mark.parametrize("proximal", [True, False])
def test_both_penalties_reach_the_weighted_mean_of_two_quadratics(
    proximal: bool, strength: float
) -> None:
    """H (w - b)^2 + lambda P (w - c)^2 is smallest at w = (H b + lambda P c) / (H + lambda P)."""
    lr = 0.5 if proximal else 1 / (2.0 + strength)  # the explicit one needs lr (H + lambda P) < 2
    learner = make_learner(nn.Linear(2, 2), lambda p: torch.optim.SGD(p, lr=lr), Parabola)
    H, b = learner.steepness, learner.best = 2.0, 1.0
    P, c = random_like(learner, 0.3, 1.0, 1), random_like(learner, -3.0, 3.0, 2)
    strategy = EWC(strength, proximal=proximal)
    strategy.penalty.add(P, c)
    learner.attach([strategy])
    descend(learner, None, 200)
    best = [(H * b + strength * P[n] * c[n]) / (H + strength * P[n]) for n in P]
    assert distance(weights(learner.module), best) < 1e-9
