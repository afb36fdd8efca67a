"""A simulated plant: linear dynamics seen through nonlinear sensors, one dynamics and target per
task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from everloop.contract import CUE, Observation, Task
from everloop.envs.riccati import LinearQuadratic
from everloop.envs.task import Mask, OneCopyEnv, TaskVectorEnv, find_task


class PlantVectorEnv(TaskVectorEnv):
    """`everloop/Plant-v0`, natively batched.

    State and dynamics, for task k (x in R^latent_dim, a in [-1, 1]^action_dim):

        x' = A_k x + B_k a + noise * e,   e ~ N(0, I),   x_0 ~ N(0, initial_std^2 I)
        reward = -(state_cost * |x' - x*_k|^2 + action_cost * |a|^2)

    A_k is a rotation by a small angle times a radius in [0.6, 0.8], so the plant is stable whatever
    the actions. B_k = (I - A_k) U_k / amplitude with orthonormal columns U_k, so a constant action
    a settles at x = U_k a / amplitude, and the target x*_k = U_k d_k is a point at distance 1 which
    the action amplitude * d_k holds. The directions d_k of the first `action_dim` tasks are
    orthogonal
    to each other: doing another task's job costs about twice |x*_k|^2, so its score is about -0.4.

    Observation (Dict of float32 Box):
        sensor_0 .. sensor_{num_modalities-1}: tanh(C_m x), shape (observation_dim,), in [-1, 1].
            Sensor m is blind to every latent coordinate i with i % num_modalities != m, so that
            only all sensors together show the state.
        cue (if task_cue): one-hot of the task, shape (num_tasks,). Without it the task must be
            inferred from how the plant answers (see `Feedback`).
    Action: Box [-1, 1], shape (action_dim,); values outside are clipped.
    Episode: `horizon` steps, then truncated.

    All matrices are drawn from `world_seed`; `reset(seed=...)` seeds the noise and initial states.
    Raises ValueError for sizes, noises and costs outside their ranges.
    """

    def __init__(
        self,
        num_envs: int = 1,
        num_tasks: int = 3,
        num_modalities: int = 2,
        observation_dim: int = 8,
        latent_dim: int = 4,
        action_dim: int = 3,
        horizon: int = 50,
        noise: float = 0.05,
        initial_std: float = 0.3,
        state_cost: float = 0.1,
        action_cost: float = 0.01,
        task_cue: bool = True,
        world_seed: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        sizes = {
            "num_tasks": num_tasks,
            "num_modalities": num_modalities,
            "observation_dim": observation_dim,
            "horizon": horizon,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}, allowed: 1 or more")
        if not (np.isfinite([noise, initial_std]).all() and min(noise, initial_std) >= 0):
            raise ValueError(f"noise is {noise} and initial_std {initial_std}, allowed: 0 or more")
        if not (np.isfinite([state_cost, action_cost]).all() and min(state_cost, action_cost) > 0):
            raise ValueError(
                f"state_cost is {state_cost} and action_cost {action_cost}, allowed: more than 0"
            )
        if not 1 <= action_dim <= latent_dim:
            raise ValueError(f"action_dim is {action_dim}, allowed: 1 to latent_dim = {latent_dim}")
        self.horizon, self.noise, self.initial_std, self.task_cue = (
            horizon,
            noise,
            initial_std,
            task_cue,
        )
        self.state_cost, self.action_cost = state_cost, action_cost
        self._generate(
            np.random.default_rng(world_seed),
            num_tasks,
            num_modalities,
            observation_dim,
            latent_dim,
            action_dim,
        )
        self.tasks = tuple(
            Task(k, f"plant-{k}", {"target": self.targets[k].tolist()}) for k in range(num_tasks)
        )
        sensor = spaces.Box(-1.0, 1.0, (observation_dim,), np.float32)
        modalities: dict[str, spaces.Space[Any]] = {
            f"sensor_{m}": sensor for m in range(num_modalities)
        }
        if task_cue:
            modalities[CUE] = spaces.Box(0.0, 1.0, (num_tasks,), np.float32)
        self.single_observation_space = spaces.Dict(modalities)
        self.single_action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        super().__init__(num_envs, autoreset_mode)
        self.reward_range = (-self._worst_cost(), 0.0)
        self._x = np.zeros((num_envs, latent_dim), dtype=np.float32)
        self._noise = np.zeros_like(self._x)
        self._minus_q = np.full(latent_dim, -state_cost, dtype=np.float32)
        self._minus_r = np.full(action_dim, -action_cost, dtype=np.float32)
        self._reference: dict[int, tuple[float, float]] = {}
        self._gather()

    def _generate(
        self, rng: np.random.Generator, tasks: int, modalities: int, sensors: int, n: int, m: int
    ) -> None:
        """Draw A (tasks, n, n), B (tasks, n, m), targets (tasks, n) and C (n, modalities *
        sensors).
        """
        angle, twist, amplitude = 0.3, 0.5, 0.8
        identity = np.eye(n)
        frame = np.linalg.qr(rng.standard_normal((n, m)))[0]
        directions = self._directions(rng, tasks, m)
        A, B, targets = [], [], []
        for k in range(tasks):
            A_k = _rotation(rng, n, angle) * rng.uniform(0.6, 0.8)
            U_k = _rotation(rng, n, twist) @ frame
            A.append(A_k)
            B.append((identity - A_k) @ U_k / amplitude)
            targets.append(U_k @ directions[k])
        self.A, self.B, self.targets = (np.stack(v).astype(np.float32) for v in (A, B, targets))
        # A constant action a settles at U_k a / amplitude; amplitude * d_k therefore holds U_k d_k.
        C = rng.standard_normal((n, modalities, sensors))
        sees = np.arange(n)[:, None] % modalities == np.arange(modalities)[None, :]
        self._C = (
            np.where(sees[:, :, None], C, 0.0).reshape(n, modalities * sensors).astype(np.float32)
        )
        self._sensors = (modalities, sensors)

    @staticmethod
    def _directions(rng: np.random.Generator, tasks: int, m: int) -> npt.NDArray[np.float64]:
        """Unit vectors (tasks, m): the first m orthogonal, each later one the most different that
        is not opposed to any.
        """
        directions = list(np.linalg.qr(rng.standard_normal((m, m)))[0].T[:tasks])
        for _ in range(m, tasks):
            candidates = rng.standard_normal((1000, m))
            candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
            likeness = candidates @ np.stack(directions).T
            opposed = np.clip(-likeness.min(1) - 0.1, 0.0, None)
            directions.append(candidates[np.argmin(likeness.max(1) + 10 * opposed)])
        return np.stack(directions)

    def _worst_cost(self) -> float:
        """An upper bound on one step's cost that noise exceeds about never (10 standard
        deviations).
        """
        radius = np.linalg.norm(self.A, ord=2, axis=(1, 2)).max()
        push = np.linalg.norm(self.B, ord=2, axis=(1, 2)).max() * np.sqrt(self.B.shape[2])
        jolt = self.noise * 10 * np.sqrt(self.A.shape[1])
        farthest = max(
            (push + jolt) / (1 - radius), 10 * self.initial_std * np.sqrt(self.A.shape[1])
        )
        return float(self.state_cost * (farthest + 1) ** 2 + self.action_cost * self.B.shape[2])

    def _gather(self) -> None:
        """Who plays which task: [(task, rows)], where one task for all takes a slice, which copies
        nothing.
        """
        played = np.unique(self.task)
        self._players: list[tuple[int, Any]] = [
            (int(k), np.flatnonzero(self.task == k)) for k in played
        ]
        if len(played) == 1:
            self._players = [(int(played[0]), slice(None))]
        self._target = self.targets[self.task]
        self._cue = np.eye(len(self.tasks), dtype=np.float32)[self.task]

    def _begin(self, mask: Mask, seeded: bool) -> None:
        self._x[mask] = self.initial_std * self.np_random.standard_normal(
            (int(mask.sum()), self._x.shape[1]), dtype=np.float32
        )
        self._gather()

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        a = np.clip(np.asarray(actions, dtype=np.float32), -1.0, 1.0)
        if a.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {a.shape}, allowed: {self.action_space.shape}")
        self.np_random.standard_normal(out=self._noise, dtype=np.float32)
        self._noise *= np.float32(self.noise)
        for k, rows in self._players:
            self._noise[rows] += self._x[rows] @ self.A[k].T + a[rows] @ self.B[k].T
        self._x, self._noise = self._noise, self._x  # the old state is the next step's scratch
        error = self._x - self._target
        return error**2 @ self._minus_q + a**2 @ self._minus_r, {}

    def _observe(self) -> Observation:
        modalities, size = self._sensors
        seen = self._x @ self._C
        np.tanh(seen, out=seen)
        observation: Observation = {
            f"sensor_{m}": seen[:, m * size : (m + 1) * size] for m in range(modalities)
        }
        if self.task_cue:
            observation[CUE] = self._cue.copy()
        return observation

    def _world_state(self) -> dict[str, Any]:
        return {"x": self._x.copy()}

    def _load_world_state(self, own: Mapping[str, Any]) -> None:
        self._x[:] = own["x"]
        self._gather()

    def linear_quadratic(self, task: int | str) -> LinearQuadratic:
        """The task as a finite-horizon linear-quadratic control problem on the true state."""
        k = find_task(self.tasks, task).id
        return LinearQuadratic(
            self.A[k],
            self.B[k],
            self.targets[k],
            self.state_cost,
            self.action_cost,
            self.noise,
            self.initial_std,
            self.horizon,
        )

    def reference(self, task: int | str) -> tuple[float, float]:
        """Random: mean return of 2,000 episodes of uniform actions.

        Best: the Riccati solution, in closed form.
        """
        k = find_task(self.tasks, task).id
        if k not in self._reference:
            problem = self.linear_quadratic(k)
            rng = np.random.default_rng(0)
            size = (2000, self.B.shape[2])
            random = problem.simulate(
                lambda t, x: rng.uniform(-1.0, 1.0, size), episodes=2000, rng=rng
            )
            self._reference[k] = float(random.mean()), problem.best_return
        return self._reference[k]


class PlantEnv(OneCopyEnv):
    """`everloop/Plant-v0`, one copy; parameters as `PlantVectorEnv`."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(PlantVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **parameters))


def _rotation(rng: np.random.Generator, n: int, angle: float) -> npt.NDArray[np.float64]:
    """A random rotation (n, n) whose largest plane angle is `angle` radians: the Cayley transform
    of a skew matrix.
    """
    if n == 1:
        return np.eye(1)
    skew = rng.standard_normal((n, n))
    skew -= skew.T
    skew *= np.tan(angle / 2) / np.linalg.norm(skew, 2)
    return np.asarray(np.linalg.solve(np.eye(n) - skew, np.eye(n) + skew), dtype=np.float64)
