"""The closed form of linear-quadratic control agrees with brute force, algebra and simulation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from everloop.envs import LinearQuadratic, PlantVectorEnv

problems = st.builds(
    lambda seed, n, m, horizon: random_problem(np.random.default_rng(seed), n, m, horizon),
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 6),
)


def random_problem(rng: np.random.Generator, n: int, m: int, horizon: int) -> dict[str, Any]:
    """Return a noise-free problem with any A, also an unstable one, and costs of a wide range."""
    q, r = 10 ** rng.uniform(-2, 1, 2)
    return {
        "A": rng.standard_normal((n, n)),
        "B": rng.standard_normal((n, m)),
        "target": rng.standard_normal(n),
        "state_cost": float(q),
        "action_cost": float(r),
        "noise": 0.0,
        "initial_std": 0.0,
        "horizon": horizon,
    }


def brute_force(problem: dict[str, Any], x0: Any) -> tuple[float, Any]:
    """Return least cost and best actions (horizon, m) by least squares in all actions at once."""
    A, B = problem["A"], problem["B"]
    H = problem["horizon"]
    n, m = B.shape
    rows, right = [], []
    for t in range(1, H + 1):  # x_t = A^t x_0 + sum_s A^{t-1-s} B a_s
        blocks = [
            np.linalg.matrix_power(A, t - 1 - s) @ B if s < t else np.zeros((n, m))
            for s in range(H)
        ]
        rows.append(np.sqrt(problem["state_cost"]) * np.hstack(blocks))
        right.append(
            np.sqrt(problem["state_cost"]) * (problem["target"] - np.linalg.matrix_power(A, t) @ x0)
        )
    rows.append(np.sqrt(problem["action_cost"]) * np.eye(H * m))
    right.append(np.zeros(H * m))
    actions = np.linalg.lstsq(np.vstack(rows), np.concatenate(right))[0]
    cost = ((np.vstack(rows) @ actions - np.concatenate(right)) ** 2).sum()
    return float(cost), actions.reshape(H, m)


@given(problems)
@settings(deadline=None, max_examples=30)
def test_the_best_return_without_noise_is_the_brute_force_optimum(problem: dict[str, Any]) -> None:
    cost, _ = brute_force(problem, np.zeros(len(problem["target"])))
    assert LinearQuadratic(**problem).best_return == pytest.approx(-cost, rel=1e-6)


@given(problems, st.floats(0.1, 3.0))
@settings(deadline=None, max_examples=30)
def test_a_random_start_costs_the_trace_of_the_value_matrix(
    problem: dict[str, Any], std: float
) -> None:
    """The optimal cost V is quadratic in x_0, with x_0 ~ N(0, std^2 I) and unit vectors e_i.

    Hence E V(x_0) = V(0) + std^2 / 2 sum_i [V(e_i) + V(-e_i) - 2 V(0)].
    """
    at_zero, _ = brute_force(problem, np.zeros(len(problem["target"])))
    curvature = sum(
        brute_force(problem, s * e)[0] - at_zero
        for e in np.eye(len(problem["target"]))
        for s in (-1.0, 1.0)
    )
    expected = at_zero + std**2 * curvature / 2
    assert LinearQuadratic(**problem | {"initial_std": std}).best_return == pytest.approx(
        -expected, rel=1e-6
    )


@given(problems, st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_the_optimal_actions_are_those_of_brute_force(problem: dict[str, Any], seed: int) -> None:
    """From any state and at every step. They do not depend on the noise."""
    x = np.random.default_rng(seed).standard_normal(len(problem["target"]))
    best = LinearQuadratic(**problem | {"noise": 0.7, "initial_std": 0.3})
    for t, action in enumerate(brute_force(problem, x)[1]):
        np.testing.assert_allclose(best.act(t, x[None])[0], action, rtol=1e-5, atol=1e-6)
        x = problem["A"] @ x + problem["B"] @ action


@given(
    a=st.floats(-2, 2),
    b=st.floats(0.1, 2),
    target=st.floats(-2, 2),
    q=st.floats(0.1, 5),
    r=st.floats(0.1, 5),
    std=st.floats(0, 2),
)
def test_one_step_of_a_scalar_plant_agrees_with_algebra(
    a: float, b: float, target: float, q: float, r: float, std: float
) -> None:
    """min_u q (a x + b u - x*)^2 + r u^2 = q r (a x - x*)^2 / (r + q b^2); noise adds q noise^2."""
    noise = 0.5
    plant = LinearQuadratic([[a]], [[b]], [target], q, r, noise, std, horizon=1)
    expected = q * r * (a**2 * std**2 + target**2) / (r + q * b**2) + q * noise**2
    assert plant.best_return == pytest.approx(-expected, rel=1e-9)
    x = 0.3
    assert plant.act(0, np.array([[x]]))[0, 0] == pytest.approx(
        q * b * (target - a * x) / (r + q * b**2), rel=1e-9, abs=1e-12
    )


def test_the_best_return_agrees_with_a_numerical_optimizer() -> None:
    a, b = 0.7, 0.4
    q, r = 0.1, 0.01
    target, H = 1.0, 8

    def cost(actions: Any) -> float:
        x, total = 0.0, 0.0
        for u in actions:
            x = a * x + b * u
            total += q * (x - target) ** 2 + r * u**2
        return total

    plant = LinearQuadratic([[a]], [[b]], [target], q, r, 0.0, 0.0, H)
    assert -plant.best_return == pytest.approx(minimize(cost, np.zeros(H), tol=1e-10).fun, rel=1e-6)


def returns_without_limits(
    problem: LinearQuadratic, gain_error: float, episodes: int, rng: np.random.Generator
) -> Any:
    """Return returns (episodes,) of 1 + gain_error times the optimal actions, unclipped."""
    x = problem.initial_std * rng.standard_normal((episodes, len(problem.target)))
    total = np.zeros(episodes)
    for t in range(problem.horizon):
        a = (1 + gain_error) * problem.act(t, x)
        x = x @ problem.A.T + a @ problem.B.T + problem.noise * rng.standard_normal(x.shape)
        total -= problem.state_cost * ((x - problem.target) ** 2).sum(1) + problem.action_cost * (
            a**2
        ).sum(1)
    return total


@pytest.mark.parametrize("world_seed", [0, 1])
@pytest.mark.parametrize("task", [0, 1, 2])
def test_the_closed_form_is_the_mean_return_of_its_policy(world_seed: int, task: int) -> None:
    """Within 4 standard errors, without clipping. Actions 5 % off do worse on the same noise."""
    problem = PlantVectorEnv(world_seed=world_seed).linear_quadratic(task)
    returns = returns_without_limits(problem, 0.0, 4000, np.random.default_rng(1))
    assert abs(returns.mean() - problem.best_return) < 4 * returns.std() / np.sqrt(len(returns))
    for gain_error in (-0.05, 0.05):
        assert (
            returns - returns_without_limits(problem, gain_error, 4000, np.random.default_rng(1))
        ).mean() > 0


@pytest.mark.parametrize("world_seed", [0, 1, 2])
def test_clipping_the_actions_costs_less_than_1_percent(world_seed: int) -> None:
    """Of the range from the random return to the closed form, which is an upper bound."""
    plant = PlantVectorEnv(world_seed=world_seed)
    for task in plant.tasks:
        random, best = plant.reference(task.id)
        problem = plant.linear_quadratic(task.id)
        returns = problem.simulate(problem.act, 4000, np.random.default_rng(2))
        assert returns.mean() < best + 4 * returns.std() / np.sqrt(len(returns))
        assert (returns.mean() - random) / (best - random) > 0.99


def test_simulated_actions_are_clipped_to_1() -> None:
    problem = PlantVectorEnv().linear_quadratic(0)
    far, limit = (
        problem.simulate(lambda t, x, a=a: np.full((len(x), 3), a), 5, np.random.default_rng(0))
        for a in (-7.0, -1.0)
    )
    np.testing.assert_array_equal(far, limit)
