"""Finite-horizon linear-quadratic control: the best possible policy on the plant's true state."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class LinearQuadratic:
    """Minimise E sum_{t<H} (q |x_{t+1} - x*|^2 + r |a_t|^2) under x' = A x + B a + noise * e.

    Appending the constant 1 to the state, z = (x, 1), turns the affine problem into a linear one.
    The value of the rest of an episode is -(z' P_t z + c_t). The recursion runs backwards from
    P_H = 0, c_H = 0, with the cost of arriving S = P_{t+1} + Q (Bertsekas, Dynamic Programming and
    Optimal Control, vol. 1, section 4.1):

        K_t = (R + B' S B)^{-1} B' S A          a_t = -K_t z_t
        P_t = A' S (A - B K_t)                   c_t = c_{t+1} + noise^2 tr(S_xx)

    The problem ignores limits on the actions. Where they bind, `best_return` is an upper bound.

    Args:
        A: Dynamics, (n, n).
        B: Effect of the actions, (n, m).
        target: The target state x*, (n,).
        state_cost: q, more than 0.
        action_cost: r, more than 0.
        noise: Standard deviation of the noise, 0 or more.
        initial_std: Standard deviation of the initial state, 0 or more.
        horizon: Steps per episode, H.
    """

    def __init__(
        self,
        A: npt.ArrayLike,
        B: npt.ArrayLike,
        target: npt.ArrayLike,
        state_cost: float,
        action_cost: float,
        noise: float,
        initial_std: float,
        horizon: int,
    ) -> None:
        self.A, self.B, self.target = (np.asarray(v, dtype=np.float64) for v in (A, B, target))
        self.state_cost, self.action_cost = state_cost, action_cost
        self.noise, self.initial_std, self.horizon = noise, initial_std, horizon

    @cached_property
    def _solution(self) -> tuple[list[Array], Array, float]:
        """Gains K_0..K_{H-1}, (m, n+1) each; P_0, (n+1, n+1); and c_0."""
        from scipy.linalg import block_diag, cho_factor, cho_solve

        n, m = self.B.shape
        A = block_diag(self.A, 1.0)
        B = np.vstack([self.B, np.zeros((1, m))])
        T = np.hstack([np.eye(n), -self.target[:, None]])  # x - x* = T z
        Q, R = self.state_cost * T.T @ T, self.action_cost * np.eye(m)
        P, c, gains = np.zeros((n + 1, n + 1)), 0.0, []
        for _ in range(self.horizon):
            S = P + Q
            K = cho_solve(cho_factor(R + B.T @ S @ B), B.T @ S @ A)
            P = A.T @ S @ (A - B @ K)
            c += self.noise**2 * float(np.trace(S[:n, :n]))
            gains.append(K)
        return gains[::-1], P, c

    @property
    def best_return(self) -> float:
        """Expected return of the optimal policy from x_0 ~ N(0, initial_std^2 I)."""
        _, P, c = self._solution
        return -float(P[-1, -1] + self.initial_std**2 * np.trace(P[:-1, :-1]) + c)

    def act(self, t: int, x: Array) -> Array:
        """Return the optimal actions, (episodes, m), at step `t` in the states x, (episodes, n)."""
        K = self._solution[0][t]
        return -(x @ K[:, :-1].T + K[:, -1])

    def simulate(
        self, policy: Callable[[int, Array], Array], episodes: int, rng: np.random.Generator
    ) -> Array:
        """Simulate episodes, with actions clipped to [-1, 1] as in the plant.

        Args:
            policy: `policy(t, x)` returns actions, (episodes, m), for states x, (episodes, n).
            episodes: Number of episodes.
            rng: Generator of the initial states and the noise.

        Returns:
            The return of each episode, (episodes,).
        """
        x = self.initial_std * rng.standard_normal((episodes, self.A.shape[0]))
        total = np.zeros(episodes)
        for t in range(self.horizon):
            a = np.clip(policy(t, x), -1.0, 1.0)
            x = x @ self.A.T + a @ self.B.T + self.noise * rng.standard_normal(x.shape)
            error = ((x - self.target) ** 2).sum(1)
            total -= self.state_cost * error + self.action_cost * (a**2).sum(1)
        return total
