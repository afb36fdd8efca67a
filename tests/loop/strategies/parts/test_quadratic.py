"""A quadratic penalty on weights: sums, decay, and weights that it does not cover."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_helpers import (
    make_learner,
    two_layers,
)
from torch import Tensor

from everloop.loop.strategies.parts.quadratic import Quadratic

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
    """Their difference is constant; a weight without precision in all of them stays free."""
    one = Quadratic()
    for P, c in parts:
        one.add(
            {"w": torch.tensor(P, dtype=torch.float64)}, {"w": torch.tensor(c, dtype=torch.float64)}
        )
    x, y = torch.tensor(places, dtype=torch.float64)
    P, c = torch.tensor(parts, dtype=torch.float64).unbind(1)

    def difference(w: Tensor) -> Tensor:
        return (P * (w - c) ** 2).sum(0) - one.precision["w"] * (w - one.anchor["w"]) ** 2

    torch.testing.assert_close(
        difference(x), difference(y), rtol=1e-9, atol=1e-9 * float(P.max() + 1)
    )
    assert torch.equal(one.precision["w"] == 0, (P == 0).all(0))
    torch.testing.assert_close(
        one.precision["w"] * (x - one.anchor["w"]),
        (P * (x - c)).sum(0),
        rtol=1e-9,
        atol=1e-9 * float(P.max() + 1),
    )


def test_moving_the_anchor_decays_old_precisions() -> None:
    one = Quadratic()
    for P, c in ((8.0, 1.0), (2.0, 5.0), (1.0, -3.0)):
        one.move({"w": torch.tensor([P])}, {"w": torch.tensor([c])}, decay=0.5)
    assert one.precision["w"].tolist() == [0.5 * (0.5 * 8 + 2) + 1]
    assert one.anchor["w"].tolist() == [-3.0]


@pytest.mark.parametrize("method", ["add_gradient", "proximal_step"])
def test_weights_outside_the_penalty_are_not_changed(method: str) -> None:
    learner, one = make_learner(two_layers()), Quadratic()
    covered, others = list(learner.weights())[:2], list(learner.weights())[2:]
    one.add(
        {n: torch.ones_like(learner.weights()[n]) for n in covered},
        {n: torch.full_like(learner.weights()[n], 9.0) for n in covered},
    )
    before = {n: p.detach().clone() for n, p in learner.weights().items()}
    for p in learner.weights().values():
        p.grad = torch.zeros_like(p)
    getattr(one, method)(learner, 2.0)
    now = {
        n: p.grad if method == "add_gradient" else p.detach() - before[n]
        for n, p in learner.weights().items()
    }
    assert all(not bool(now[n].any()) for n in others)
    assert all(bool((now[n] != 0).all()) for n in covered)
