"""Quadratic pulls on weights: their gradients by autograd, their fixed points in closed form, what
they are made of.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import FixedLearner, distance, vector_batch, weights
from strategy_helpers import (
    Named,
    Untold,
    edited,
    gradient,
    learner_of,
    like,
    move,
    one_layer,
    two_layers,
)
from torch import Tensor, nn

from everloop.loop import EWC, L2, Batch, L2Init, NotFiniteError
from everloop.loop.strategies.parts.quadratic import Quadratic

Quadratics = list[tuple[dict[str, Tensor], dict[str, Tensor]]]  # (precision, center) of each


class Parabola(Untold):
    """loss = 1/2 sum_i steepness_i (w_i - best_i)^2, whatever the batch; 0 everywhere at first."""

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


numbers = st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3)
precisions = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), min_size=3, max_size=3)


@settings(deadline=None, max_examples=30)
@given(
    parts=st.lists(st.tuples(precisions, numbers), min_size=1, max_size=4),
    places=st.lists(numbers, min_size=2, max_size=2),
)
def test_a_sum_of_quadratics_is_one_quadratic(
    parts: list[tuple[list[float], list[float]]], places: list[list[float]]
) -> None:
    """Their difference is the same number everywhere; where nothing holds a weight, it is free."""
    one = Quadratic()
    for P, c in parts:
        one.add(
            {"w": torch.tensor(P, dtype=torch.float64)}, {"w": torch.tensor(c, dtype=torch.float64)}
        )
    x, y = torch.tensor(places, dtype=torch.float64)
    P, c = torch.tensor(parts, dtype=torch.float64).unbind(1)

    def apart(w: Tensor) -> Tensor:
        return (P * (w - c) ** 2).sum(0) - one.precision["w"] * (w - one.anchor["w"]) ** 2

    torch.testing.assert_close(apart(x), apart(y), rtol=1e-9, atol=1e-9 * float(P.max() + 1))
    assert torch.equal(one.precision["w"] == 0, (P == 0).all(0))
    torch.testing.assert_close(
        one.precision["w"] * (x - one.anchor["w"]),
        (P * (x - c)).sum(0),
        rtol=1e-9,
        atol=1e-9 * float(P.max() + 1),
    )


def test_one_anchor_for_all_forgets_old_centers_and_discounts_old_precisions() -> None:
    one = Quadratic()
    for P, c in ((8.0, 1.0), (2.0, 5.0), (1.0, -3.0)):
        one.move({"w": torch.tensor([P])}, {"w": torch.tensor([c])}, decay=0.5)
    assert one.precision["w"].tolist() == [0.5 * (0.5 * 8 + 2) + 1]
    assert one.anchor["w"].tolist() == [-3.0]


@pytest.mark.parametrize("pull", ["add_gradient", "proximal_step"])
def test_weights_that_no_quadratic_knows_are_not_touched(pull: str) -> None:
    learner, one = learner_of(two_layers()), Quadratic()
    known, unknown = list(learner.weights())[:2], list(learner.weights())[2:]
    one.add(
        {n: torch.ones_like(learner.weights()[n]) for n in known},
        {n: torch.full_like(learner.weights()[n], 9.0) for n in known},
    )
    before = {n: p.detach().clone() for n, p in learner.weights().items()}
    for p in learner.weights().values():
        p.grad = torch.zeros_like(p)
    getattr(one, pull)(learner, 2.0)
    now = {
        n: p.grad if pull == "add_gradient" else p.detach() - before[n]
        for n, p in learner.weights().items()
    }
    assert all(not bool(now[n].any()) for n in unknown)
    assert all(bool((now[n] != 0).all()) for n in known)


# L2 and L2Init


def test_l2_holds_to_the_last_tasks_weights_and_to_no_earlier_ones() -> None:
    learner, strategy = learner_of(two_layers()), L2(0.7)
    assert not any(
        bool(g.any()) for g in edited(learner, strategy)
    )  # nothing to hold to before the first task's end
    for task in range(3):
        move(learner, 10 + task)
        strategy.begin_task(Named(task), learner)
        last = move(learner, 20 + task)
        strategy.end_task(Named(task), [], learner)
    move(learner, 30)
    ones = {n: torch.ones_like(c) for n, c in last.items()}
    expected = [0.7 * g for g in gradient(learner, penalty(learner, [(ones, last)]))]
    assert distance(edited(learner, strategy), expected) < 1e-14
    assert (
        distance(
            expected,
            [0.7 * (w - c) for w, c in zip(weights(learner.module), last.values(), strict=True)],
        )
        < 1e-14
    )


def test_l2_init_holds_to_the_very_first_weights_after_any_number_of_tasks() -> None:
    learner, strategy = learner_of(two_layers()), L2Init(0.7)
    first = move(learner, 0)
    for task in range(3):
        strategy.begin_task(Named(task), learner)
        assert (
            distance(
                edited(learner, strategy),
                [2 * 0.7 * (p.detach() - first[n]) for n, p in learner.weights().items()],
            )
            < 1e-14
        )
        move(learner, 20 + task)
        strategy.end_task(Named(task), [], learner)
    loss = 0.7 * sum(((p - first[n]) ** 2).sum() for n, p in learner.weights().items())
    assert distance(edited(learner, strategy), gradient(learner, loss)) < 1e-13


def test_l2_init_anchors_weights_that_come_later_where_they_come() -> None:
    layers = nn.Sequential(nn.Linear(2, 2))
    learner, strategy = learner_of(layers), L2Init(0.5)
    first = move(learner, 0)
    strategy.begin_task(Named(0), learner)
    layers.append(nn.Linear(2, 2).double())
    late = move(learner, 1)
    strategy.begin_task(Named(1), learner)
    now = move(learner, 2)
    center = late | first
    assert list(center) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert distance(edited(learner, strategy), [now[n] - center[n] for n in center]) < 1e-14
    assert distance(list(first.values()), [late[n] for n in first]) > 0.1


@pytest.mark.parametrize(
    ("strategy", "rate"), [(L2(0.6), 0.6), (L2Init(0.6), 1.2)], ids=["l2", "l2 init"]
)
def test_where_the_loss_is_flat_weights_return_geometrically(strategy: Any, rate: float) -> None:
    """w - c shrinks by 1 - lr * rate with every step."""
    learner = learner_of(two_layers(), lambda p: torch.optim.SGD(p, lr=0.25), Parabola)
    center = move(learner, 0)
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    strategy.end_task(Named(), [], learner)
    start = move(learner, 1)
    descend(learner, None, 7)
    expected = [center[n] + (1 - 0.25 * rate) ** 7 * (start[n] - center[n]) for n in start]
    assert distance(weights(learner.module), expected) < 1e-14


# EWC with an implicit step

SGD = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
ADAM = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731


def grouped(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.7}], lr=0.03)


@pytest.mark.parametrize("strength", [0.5, 40.0, 1e9])
@pytest.mark.parametrize(
    "optimizer", [SGD, ADAM, grouped], ids=["sgd", "adam", "a rate for each group"]
)
def test_a_proximal_step_follows_the_optimizers_own(optimizer: Any, strength: float) -> None:
    """w <- (w + lr lambda P c) / (1 + lr lambda P), after the step that would be taken
    without it.
    """
    learner = learner_of(two_layers(), optimizer, Parabola)
    learner.steepness, learner.best = 3.0, 2.0
    plain = copy.deepcopy(learner)
    plain.attach([])
    strategy = EWC(strength, proximal=True)
    P, c = like(learner, 0.0, 2.0, 1), like(learner, -1.0, 1.0, 2)
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


def test_a_proximal_step_minimises_distance_and_penalty_together() -> None:
    """d/dv [ |v - w|^2 / (2 lr) + lambda / 2 P (v - c)^2 ] = 0 at the weights after it."""
    learner, strategy = learner_of(two_layers(), grouped), EWC(5.0, proximal=True)
    P, c = like(learner, 0.0, 2.0, 1), like(learner, -1.0, 1.0, 2)
    strategy.penalty.add(P, c)
    before = move(learner, 3)
    for p in learner.module.parameters():
        p.grad = torch.zeros_like(p)  # a weight without a gradient is left alone
    strategy.after_step(vector_batch(1, 1, 1), learner)
    rates = {p: group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    way = sum(((p - before[n]) ** 2).sum() / (2 * rates[p]) for n, p in learner.weights().items())
    assert (
        max(float(g.abs().max()) for g in gradient(learner, way + 5.0 * penalty(learner, [(P, c)])))
        < 1e-12
    )
    assert distance(weights(learner.module), list(before.values())) > 0.1


@pytest.mark.parametrize("proximal", [True, False])
def test_a_proximal_pull_is_no_part_of_the_gradient_and_an_explicit_one_nothing_else(
    proximal: bool,
) -> None:
    learner, strategy = learner_of(two_layers()), EWC(5.0, proximal=proximal)
    strategy.penalty.add(like(learner, 1.0, 2.0, 1), like(learner, 2.0, 3.0, 2))
    pulls = edited(learner, strategy)
    before = weights(learner.module)
    strategy.after_step(vector_batch(1, 1, 1), learner)
    assert any(bool(g.any()) for g in pulls) is not proximal
    assert (distance(weights(learner.module), before) > 0.1) is proximal


def test_a_proximal_pull_cannot_diverge_where_an_explicit_one_does() -> None:
    """With strength 1e12 the weights stand where the last task left them; an explicit step
    overshoots ever further.
    """
    batch, new = vector_batch(30, 4, 3), vector_batch(30, 4, 3, seed=1)
    learner, explicit = learner_of(one_layer()), learner_of(one_layer())
    for one, proximal in ((learner, True), (explicit, False)):
        strategy = EWC(1e12, fisher="exact", proximal=proximal)
        one.attach([strategy])
        strategy.end_task(Named(), [batch], one)
        assert min(float(P.min()) for P in strategy.penalty.precision.values()) > 0.01
    center = weights(learner.module)
    descend(learner, new, 50)
    assert distance(weights(learner.module), center) < 1e-10
    with pytest.raises(NotFiniteError):
        descend(explicit, new, 50)
    assert max(float(w.abs().max()) for w in weights(explicit.module)) > 1e100


@pytest.mark.parametrize("strength", [0.3, 1.0, 1e4])
@pytest.mark.parametrize("proximal", [True, False])
def test_two_quadratics_meet_in_their_weighted_mean(proximal: bool, strength: float) -> None:
    """The minimum of 1/2 H (w - b)^2 + lambda / 2 P (w - c)^2 is (H b + lambda P c) / (H + lambda
    P), by either pull.
    """
    lr = 0.5 if proximal else 1 / (2.0 + strength)  # the explicit one wants lr (H + lambda P) < 2
    learner = learner_of(nn.Linear(2, 2), lambda p: torch.optim.SGD(p, lr=lr), Parabola)
    H, b = learner.steepness, learner.best = 2.0, 1.0
    P, c = like(learner, 0.3, 1.0, 1), like(learner, -3.0, 3.0, 2)
    strategy = EWC(strength, proximal=proximal)
    strategy.penalty.add(P, c)
    learner.attach([strategy])
    descend(learner, None, 200)
    best = [(H * b + strength * P[n] * c[n]) / (H + strength * P[n]) for n in P]
    assert distance(weights(learner.module), best) < 1e-9
