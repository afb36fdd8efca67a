"""GEM and A-GEM: the gradient that is left is the nearest one that keeps the past, against solvers
that know nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    control_learner,
    same,
    vector_batch,
    vector_learner,
    weights,
)
from scipy.optimize import minimize
from strategy_helpers import Named
from torch import nn

from everloop.loop import AGEM, GEM, Batch
from everloop.loop.strategies.gem import solve_dual

INPUTS, CLASSES = 3, 4
EITHER = pytest.mark.parametrize("kind", [AGEM, GEM])
Vector = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32)


def task_batch(task: int, examples: int = 6) -> Batch:
    """Random examples that belong to the task alone."""
    return replace(
        vector_batch(examples, INPUTS, CLASSES, seed=task), task=torch.full((examples,), task)
    )


def taught(strategy: AGEM | GEM, ended: Sequence[int], at_hand: int | None = None) -> FixedLearner:
    """A linear classifier; the strategy stores a batch of each ended task, and of one that
    goes on.
    """
    torch.manual_seed(0)
    learner = vector_learner(nn.Linear(INPUTS, CLASSES), CLASSES)
    learner.attach([strategy])
    for task in [*ended, *([] if at_hand is None else [at_hand])]:
        strategy.begin_task(Named(task), learner)
        strategy.observe(task_batch(task), learner)
        if task != at_hand:
            strategy.end_task(Named(task), [], learner)
    return learner


def give_gradient(learner: FixedLearner, seed: int) -> Vector:
    """Random numbers as if a fresh batch had left them; returns them as one vector."""
    g = torch.Generator().manual_seed(seed)
    for p in learner.module.parameters():
        p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
    return gradient_of(learner)


def gradient_of(learner: FixedLearner) -> Vector:
    return (
        torch.cat([p.grad.flatten() for p in learner.module.parameters() if p.grad is not None])
        .numpy()
        .copy()
    )


def by_hand(learner: FixedLearner, batch: Batch) -> Vector:
    """The gradient of the mean cross-entropy of a linear classifier: (softmax - one-hot) x', over
    the examples.
    """
    layer: Any = (
        learner.module.layers[0]
        if isinstance(learner.module.layers, nn.Sequential)
        else learner.module.layers
    )
    x, y = batch.obs["x"][0], batch.target[0]  # type: ignore[index]
    error = (
        torch.softmax(x @ layer.weight.T + layer.bias, -1) - torch.eye(CLASSES, dtype=x.dtype)[y]
    ) / len(y)
    return torch.cat([(error.T @ x).flatten(), error.sum(0)]).detach().numpy()


def foresee(
    strategy: AGEM | GEM, learner: FixedLearner, tasks: Sequence[Sequence[int]]
) -> list[Batch]:
    """What the strategy is about to draw, once for each set of tasks; it draws the same
    afterwards.
    """
    state = strategy.memory.rng.bit_generator.state
    drawn = [strategy.draw(learner, np.array(ids)) for ids in tasks]
    strategy.memory.rng.bit_generator.state = state
    return [batch for batch in drawn if batch is not None]


def close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# A-GEM


@settings(deadline=None, max_examples=40)
@given(seed=seeds, strength=st.sampled_from([1.0, 0.3]))
def test_agem_takes_away_what_points_against_the_past_and_nothing_else(
    seed: int, strength: float
) -> None:
    """g - strength (g . r) / (r . r) r if g . r < 0, else g to the last bit; with strength 1, g~ .
    r = 0.
    """
    agem = AGEM(strength, capacity=30, batch_size=5, seed=seed)
    learner = taught(agem, [0, 1], at_hand=2)
    (drawn,) = foresee(agem, learner, [[0, 1]])
    g, r = give_gradient(learner, seed), by_hand(learner, drawn)
    learner.strategies[0].edit_gradients(None, learner)
    edited = gradient_of(learner)
    if g @ r >= 0:
        assert (edited == g).all()
    else:
        close(edited, g - strength * (g @ r) / (r @ r) * r)
        assert edited @ r == pytest.approx((1 - strength) * (g @ r), abs=1e-9)


def test_agems_reference_is_of_ended_tasks_only() -> None:
    agem = AGEM(capacity=30, batch_size=200)
    learner = taught(agem, [0, 3], at_hand=2)
    agem.begin_task(Named(3), learner)  # it comes back
    (drawn,) = foresee(agem, learner, [[0]])
    r = by_hand(learner, drawn)
    for p, part in zip(learner.module.parameters(), np.split(-r, [INPUTS * CLASSES]), strict=True):
        p.grad = torch.from_numpy(part).view_as(p).clone()  # straight against the past
    agem.edit_gradients(None, learner)
    assert np.abs(gradient_of(learner)).max() < 1e-12 * np.abs(r).max() + 1e-15


@EITHER
@pytest.mark.parametrize("seed", range(5))
def test_a_small_step_of_gradient_descent_does_not_raise_the_pasts_loss(
    kind: type[AGEM | GEM], seed: int
) -> None:
    """To first order: the rise along the edited gradient is of second order, and that along the
    plain one is not.
    """
    strategy, rate = kind(capacity=30, batch_size=6, seed=seed), 1e-4
    learner = taught(strategy, [0])
    (drawn,) = foresee(strategy, learner, [[0]])
    r = by_hand(learner, drawn)
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


@EITHER
def test_without_an_ended_task_the_gradient_stays_as_it_is(kind: type[AGEM | GEM]) -> None:
    learner = taught(kind(capacity=30), [], at_hand=0)
    g = give_gradient(learner, 0)
    learner.strategies[0].edit_gradients(None, learner)
    assert (gradient_of(learner) == g).all()


@EITHER
def test_weights_without_a_gradient_get_none_and_stand_outside_of_the_constraints(
    kind: type[AGEM | GEM],
) -> None:
    """As if the network had no others than those that the update changes."""
    strategy = kind(capacity=30, batch_size=6)
    learner = taught(strategy, [0])
    weight, bias = learner.module.parameters()
    (drawn,) = foresee(strategy, learner, [[0]])
    r = by_hand(learner, drawn)[: INPUTS * CLASSES]
    g = np.random.default_rng(0).standard_normal(len(r)) - 2 * r
    weight.grad, bias.grad = torch.from_numpy(g).view_as(weight).clone(), None
    strategy.edit_gradients(None, learner)
    assert bias.grad is None
    assert g @ r < 0
    close(weight.grad.flatten(), g - (g @ r) / (r @ r) * r, 1e-8)  # type: ignore[union-attr]


@EITHER
def test_the_weights_and_what_is_stored_stay_as_they_are(kind: type[AGEM | GEM]) -> None:
    strategy = kind(capacity=30, batch_size=6)
    learner = taught(strategy, [0, 1])
    before, items = (
        weights(learner.module),
        {name: x.copy() for name, x in strategy.memory.items.items()},
    )
    give_gradient(learner, 1)
    strategy.edit_gradients(None, learner)
    assert same(weights(learner.module), before)
    assert all((x == items[name]).all() for name, x in strategy.memory.items.items())


# GEM


def nearest(g: Vector, G: Vector) -> Vector:
    """argmin |x - g|^2 / 2 with G x >= 0, by a general solver."""
    found = minimize(
        lambda x: ((x - g) ** 2).sum() / 2,
        np.zeros(len(g)),
        jac=lambda x: x - g,
        constraints={"type": "ineq", "fun": lambda x: G @ x, "jac": lambda x: G},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.asarray(found.x)


@pytest.mark.parametrize("ended", [[0], [0, 1], [3, 0, 1, 2]], ids=str)
@pytest.mark.parametrize("strength", [1.0, 0.4])
@settings(deadline=None, max_examples=15)
@given(seed=seeds)
def test_gems_gradient_is_the_nearest_that_keeps_every_ended_task(
    ended: list[int], strength: float, seed: int
) -> None:
    gem = GEM(strength, capacity=60, batch_size=5, seed=seed)
    learner = taught(gem, ended, at_hand=9)
    G = np.stack(
        [by_hand(learner, drawn) for drawn in foresee(gem, learner, [[task] for task in ended])]
    )
    g = give_gradient(learner, seed)
    gem.edit_gradients(None, learner)
    edited = gradient_of(learner)
    if (G @ g >= 0).all():
        assert (edited == g).all()
    else:
        projected = g + (edited - g) / strength
        assert (G @ projected >= -1e-8 * np.linalg.norm(g)).all()
        close(projected, nearest(g, G), 1e-5)
        assert ((projected - g) ** 2).sum() <= ((nearest(g, G) - g) ** 2).sum() + 1e-6


@settings(deadline=None, max_examples=20)
@given(seed=seeds, margin=st.floats(0.01, 2.0))
def test_a_margin_is_the_least_weight_of_every_ended_task(seed: int, margin: float) -> None:
    """g~ = G' v + g, v = argmin_(v >= margin) v' G G' v / 2 + g' G' v: with a general solver's v,
    the same g~.
    """
    gem = GEM(capacity=60, batch_size=5, margin=margin, seed=seed)
    learner = taught(gem, [0, 1, 2])
    G = np.stack([by_hand(learner, drawn) for drawn in foresee(gem, learner, [[0], [1], [2]])])
    g = give_gradient(learner, seed)
    gem.edit_gradients(None, learner)
    v = minimize(
        lambda v: ((G.T @ v + g) ** 2).sum() / 2,
        np.full(3, margin),
        jac=lambda v: G @ (G.T @ v + g),
        bounds=[(margin, None)] * 3,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    ).x
    kept = (G @ g >= 0).all()
    close(gradient_of(learner), g if kept else G.T @ v + g, 1e-5)
    if not kept:
        assert (G @ gradient_of(learner) >= -1e-8 * np.linalg.norm(g)).all(), (
            "a margin keeps the past the more"
        )


@pytest.mark.parametrize("seed", range(10))
def test_in_single_precision_tasks_that_agree_but_for_rounding_are_kept(seed: int) -> None:
    """Past gradients that depend on each other have a Gram matrix which rounding makes
    indefinite.
    """
    torch.manual_seed(seed)
    size, gem = 400, GEM(capacity=4, batch_size=1)
    learner = FixedLearner(
        vector_learner(nn.Linear(size, 2), 2).module.float(),
        vector_learner(nn.Linear(1, 2), 2).likelihood,
    )
    learner.attach([gem])
    x = torch.randn(size)
    for task in range(4):  # the same example but for a little
        shown = (x + 1e-6 * torch.randn(size))[None, None]
        gem.observe(
            Batch(
                {"x": shown},
                torch.ones(1, 1, dtype=torch.bool),
                torch.zeros(1, 1).long(),
                task=torch.tensor([task]),
            ),
            learner,
        )
        gem.end_task(Named(task), [], learner)
    drawn = foresee(gem, learner, [[task] for task in range(4)])
    G = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(learner.loss(d), list(learner.module.parameters()))
                ]
            )
            for d in drawn
        ]
    )
    for p, part in zip(learner.module.parameters(), torch.split(-G[0], [2 * size, 2]), strict=True):
        p.grad = part.view_as(p) + 0.01 * torch.randn_like(p)
    gem.edit_gradients(None, learner)
    after = torch.from_numpy(gradient_of(learner))
    assert bool((G @ after >= -1e-4 * G.norm(dim=1) * G[0].norm()).all())


# the dual


def problem(tasks: int, weights: int, seed: int, degenerate: bool) -> tuple[Vector, Vector]:
    """Random G and g; degenerate ones have equal, opposite, dependent and empty rows.

    G is of tenths, so that rows are dependent or clearly not: rows that nearly oppose each other
    magnify rounding ten thousand times, in any solver.
    """
    rng = np.random.default_rng(seed)
    G, g = rng.standard_normal((tasks, weights)).round(1), rng.standard_normal(weights)
    if degenerate:
        for row in range(1, tasks):
            other = int(rng.integers(row))
            G[row] = [G[row], G[other], -G[other], 0 * G[row], G[:row].sum(0)][int(rng.integers(5))]
    return G, g


problems = st.builds(problem, st.integers(1, 7), st.integers(1, 6), seeds, st.booleans())


@settings(deadline=None, max_examples=150)
@given(problem=problems, margin=st.sampled_from([0.0, 0.5]))
def test_the_dual_satisfies_the_conditions_of_karush_kuhn_and_tucker(
    problem: tuple[Vector, Vector], margin: float
) -> None:
    """v >= margin, slope P v + q >= 0, and one of the two is an equality: for a convex problem that
    is the optimum.
    """
    G, g = problem
    P, q = G @ G.T, G @ g
    v = solve_dual(P, q, margin)
    slope, scale = P @ v + q, 1 + np.abs(P).max() + np.abs(q).max()
    assert (v >= margin).all()
    assert (slope >= -1e-6 * scale).all()
    assert np.abs((v - margin) * slope).max() <= 1e-6 * scale * (1 + np.abs(v).max())


@settings(deadline=None, max_examples=150)
@given(problem=problems)
def test_the_projection_is_quadprogs(problem: tuple[Vector, Vector]) -> None:
    """argmin |x - g|^2 / 2 with G x >= 0 has one answer, however many v lead to it."""
    quadprog = pytest.importorskip("quadprog")
    G, g = problem
    G = G[np.linalg.norm(G, axis=1) > 0]  # an empty constraint is none
    if len(G):
        least = np.full(
            len(G), -1e-9
        )  # of two opposite constraints rounding leaves nothing that satisfies both
        expected = quadprog.solve_qp(np.eye(len(g)), g, np.ascontiguousarray(G.T), least)[0]
        close(G.T @ solve_dual(G @ G.T, G @ g) + g, expected, 1e-4)


@settings(deadline=None, max_examples=60)
@given(tasks=st.integers(1, 5), seed=seeds, margin=st.sampled_from([0.0, 0.5, 2.0]))
def test_the_dual_itself_is_quadprogs_where_it_has_one_answer(
    tasks: int, seed: int, margin: float
) -> None:
    quadprog = pytest.importorskip("quadprog")
    G, g = problem(tasks, 12, seed, degenerate=False)
    P, q = G @ G.T, G @ g
    expected = quadprog.solve_qp(P, -q, np.eye(tasks), np.full(tasks, margin))[0]
    close(solve_dual(P, q, margin), expected, 1e-6)


def test_a_dual_that_can_be_solved_in_the_head() -> None:
    """Two orthogonal tasks of which one is hurt by 3, its gradient of length 2: v = (3 / 4, 0)."""
    assert solve_dual(np.diag([4.0, 1.0]), np.array([-3.0, 2.0])).tolist() == pytest.approx(
        [0.75, 0.0]
    )
    assert solve_dual(
        np.diag([4.0, 1.0]), np.array([-3.0, 2.0]), margin=0.5
    ).tolist() == pytest.approx([0.75, 0.5])
    assert solve_dual(np.zeros((2, 2)), np.zeros(2), margin=0.5).tolist() == pytest.approx(
        [0.5, 0.5]
    )


# control


@EITHER
def test_in_control_the_edited_gradient_does_not_raise_the_divergence_from_past_policies(
    kind: type[AGEM | GEM],
) -> None:
    """PPO's own gradient, in its own training: what comes out of `edit_gradients` has no conflict
    left, what went in had.
    """
    learner, strategy = (
        control_learner(max_grad_norm=float("inf")),
        kind(capacity=60, batch_size=16),
    )
    found: list[tuple[float, float]] = []
    edit = strategy.edit_gradients

    def noted(batch: Batch, learner: Any) -> None:
        drawn = foresee(strategy, learner, [[0]] if len(strategy.past) else [])
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

    strategy.edit_gradients = noted  # type: ignore[method-assign]
    for task in (0, 1):
        learner.attach([strategy])
        strategy.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        strategy.end_task(learner.world.tasks[task], [], learner)
    conflicts = [(before, after) for before, after in found if before < -1e-4]
    assert len(conflicts) >= 2
    assert all(abs(after) < 1e-3 * abs(before) + 1e-6 for before, after in conflicts)
    assert all(before == after for before, after in found if before > 1e-6)
