"""GEM: its projection and its solver of the dual problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    vector_learner,
)
from projection_helpers import (
    Vector,
    close,
    cross_entropy_gradient,
    give_gradient,
    gradient_of,
    learner_with_memory,
    next_task_draws,
    seeds,
)
from scipy.optimize import minimize
from strategy_helpers import Named
from torch import nn

from everloop.loop import GEM, Batch
from everloop.loop.strategies.gem import solve_dual


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
def test_gems_gradient_is_the_nearest_that_harms_no_past_task(
    ended: list[int], strength: float, seed: int
) -> None:
    gem = GEM(strength, capacity=60, batch_size=5, margin=0.0, seed=seed)
    learner = learner_with_memory(gem, ended, current=9)
    G = np.stack(
        [
            cross_entropy_gradient(learner, drawn)
            for drawn in next_task_draws(gem, learner, [[task] for task in ended])
        ]
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
def test_a_margin_bounds_every_dual_variable_from_below(seed: int, margin: float) -> None:
    """g~ = G' v + g with v = argmin_(v >= margin) v' G G' v / 2 + g' G' v, by a general solver."""
    gem = GEM(capacity=60, batch_size=5, margin=margin, seed=seed)
    learner = learner_with_memory(gem, [0, 1, 2])
    G = np.stack(
        [
            cross_entropy_gradient(learner, drawn)
            for drawn in next_task_draws(gem, learner, [[0], [1], [2]])
        ]
    )
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
        assert (G @ gradient_of(learner) >= -1e-8 * np.linalg.norm(g)).all()


@pytest.mark.parametrize("seed", range(2))
def test_the_default_margin_keeps_old_classes_that_eq_11_alone_loses(seed: int) -> None:
    """Two tasks of two classes each, one head: blobs around the corners of a square."""

    def accuracy_of_first_task(gem: GEM, tasks: Sequence[int] = (0, 1)) -> float:
        g = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        learner = vector_learner(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4)), 4)
        optimizer = torch.optim.Adam(learner.module.parameters(), 0.1)
        corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]).double()

        def blobs(task: int) -> Batch:
            y = 2 * task + torch.randint(2, (1, 32), generator=g)
            x = corners[y] + 0.2 * torch.randn(1, 32, 2, generator=g, dtype=torch.float64)
            start = torch.ones(1, 32, dtype=torch.bool)
            return Batch({"x": x}, start, y, task=torch.full((32,), task))

        for task in tasks:
            gem.begin_task(Named(task), learner)
            for _ in range(60):
                batch = blobs(task)
                gem.observe(batch, learner)
                optimizer.zero_grad()
                learner.loss(batch).backward()
                gem.edit_gradients(batch, learner)
                optimizer.step()
            gem.end_task(Named(task), [], learner)
        test = blobs(0)
        return float((learner.outputs(test).argmax(-1) == test.target).double().mean())

    assert accuracy_of_first_task(GEM(capacity=200)) > 0.9
    assert accuracy_of_first_task(GEM(capacity=200), [0, 1, 0, 1]) > 0.9, "the task has returned"
    assert accuracy_of_first_task(GEM(capacity=200, margin=0.0)) < 0.5


@pytest.mark.parametrize("seed", range(10))
def test_gem_satisfies_nearly_equal_constraints_in_single_precision(seed: int) -> None:
    """Rounding makes the Gram matrix of dependent past gradients indefinite."""
    torch.manual_seed(seed)
    size, gem = 400, GEM(capacity=4, batch_size=1)
    learner = FixedLearner(
        vector_learner(nn.Linear(size, 2), 2).module.float(),
        vector_learner(nn.Linear(1, 2), 2).likelihood,
    )
    learner.attach([gem])
    x = torch.randn(size)
    for task in range(4):  # nearly the same example
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
    drawn = next_task_draws(gem, learner, [[task] for task in range(4)])
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


def problem(tasks: int, weights: int, seed: int, degenerate: bool) -> tuple[Vector, Vector]:
    """Random G and g; degenerate ones have equal, opposite, dependent and zero rows.

    G has one decimal, so that rows are either dependent or clearly not: nearly opposite rows
    magnify rounding ten thousand times in any solver.
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
def test_the_dual_solution_satisfies_the_kkt_conditions(
    problem: tuple[Vector, Vector], margin: float
) -> None:
    """v >= margin, slope P v + q >= 0, and one is an equality: the optimum of a convex problem."""
    G, g = problem
    P, q = G @ G.T, G @ g
    v = solve_dual(P, q, margin)
    slope, scale = P @ v + q, 1 + np.abs(P).max() + np.abs(q).max()
    assert (v >= margin).all()
    assert (slope >= -1e-6 * scale).all()
    assert np.abs((v - margin) * slope).max() <= 1e-6 * scale * (1 + np.abs(v).max())


@settings(deadline=None, max_examples=150)
@given(problem=problems)
def test_the_projection_equals_quadprogs(problem: tuple[Vector, Vector]) -> None:
    """argmin |x - g|^2 / 2 with G x >= 0 is unique, even if v is not."""
    quadprog = pytest.importorskip("quadprog")
    G, g = problem
    G = G[np.linalg.norm(G, axis=1) > 0]  # a zero row is no constraint
    if len(G):
        # with bounds of 0, rounding could leave no solution for two opposite rows
        least = np.full(len(G), -1e-9)
        expected = quadprog.solve_qp(np.eye(len(g)), g, np.ascontiguousarray(G.T), least)[0]
        close(G.T @ solve_dual(G @ G.T, G @ g) + g, expected, 1e-4)


@settings(deadline=None, max_examples=60)
@given(tasks=st.integers(1, 5), seed=seeds, margin=st.sampled_from([0.0, 0.5, 2.0]))
def test_a_unique_dual_solution_equals_quadprogs(tasks: int, seed: int, margin: float) -> None:
    quadprog = pytest.importorskip("quadprog")
    G, g = problem(tasks, 12, seed, degenerate=False)
    P, q = G @ G.T, G @ g
    expected = quadprog.solve_qp(P, -q, np.eye(tasks), np.full(tasks, margin))[0]
    close(solve_dual(P, q, margin), expected, 1e-6)


def test_duals_with_known_solutions() -> None:
    """Two orthogonal tasks; one has gradient norm 2 and conflict -3, so v = (3 / 4, 0)."""
    assert solve_dual(np.diag([4.0, 1.0]), np.array([-3.0, 2.0])).tolist() == pytest.approx(
        [0.75, 0.0]
    )
    assert solve_dual(
        np.diag([4.0, 1.0]), np.array([-3.0, 2.0]), margin=0.5
    ).tolist() == pytest.approx([0.75, 0.5])
    assert solve_dual(np.zeros((2, 2)), np.zeros(2), margin=0.5).tolist() == pytest.approx(
        [0.5, 0.5]
    )
