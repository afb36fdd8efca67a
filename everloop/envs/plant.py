"""A simulated plant: linear dynamics behind nonlinear sensors, with a target for each task."""

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

    State and dynamics of task k, for x in R^latent_dim and a in [-1, 1]^action_dim:

        x' = A_k x + B_k a + noise * e,   e ~ N(0, I),   x_0 ~ N(0, initial_std^2 I)
        reward = -(state_cost * |x' - x*_k|^2 + action_cost * |a|^2)

    A_k is a rotation by a small angle times a radius in [0.6, 0.8], so the plant is stable under
    any actions. B_k = (I - A_k) U_k / amplitude with orthonormal columns U_k, so a constant action
    a settles at x = U_k a / amplitude. The target x*_k = U_k d_k is at distance 1; the action
    amplitude * d_k holds it. The directions d_k of the first `action_dim` tasks are orthogonal to
    each other. A policy that solves another task therefore costs about twice |x*_k|^2 and scores
    about -0.4.

    Observation (Dict of float32 Box):
        sensor_0 .. sensor_{num_modalities-1}: tanh(C_m x), (observation_dim,), in [-1, 1].
            Sensor m sees only the latent coordinates i with i % num_modalities == m, so the state
            is visible only to all sensors together.
        cue (if task_cue): One-hot of the task, (num_tasks,). Without it the task must be inferred
            from how the plant responds (see `Feedback`).
    Action: Box [-1, 1], (action_dim,); values outside are clipped.
    Episode: `horizon` steps, then truncated.

    Args:
        num_envs: Number of copies, 1 or more.
        num_tasks: Number of tasks, 1 or more.
        num_modalities: Number of sensors, 1 or more.
        observation_dim: Size of each sensor's observation, 1 or more.
        latent_dim: Size of the state, `action_dim` or more.
        action_dim: Size of the action, 1 or more.
        horizon: Steps per episode, 1 or more.
        noise: Standard deviation of the noise in each step, 0 or more.
        initial_std: Standard deviation of the initial state, 0 or more.
        state_cost: Cost of the squared distance to the target, more than 0.
        action_cost: Cost of the squared action, more than 0.
        task_cue: Whether the observation shows the task.
        world_seed: Seed of all matrices. `reset(seed=...)` seeds the noise and initial states.
        autoreset_mode: SAME_STEP or DISABLED.

    Raises:
        ValueError: If a size, noise or cost is outside its range.
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
            "latent_dim": latent_dim,
            "observation_dim": observation_dim,
            "horizon": horizon,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be 1 or more")
        for name, std in {"noise": noise, "initial_std": initial_std}.items():
            if not (np.isfinite(std) and std >= 0):
                raise ValueError(f"{name} is {std}; it must be finite and 0 or more")
        for name, cost in {"state_cost": state_cost, "action_cost": action_cost}.items():
            if not (np.isfinite(cost) and cost > 0):
                raise ValueError(f"{name} is {cost}; it must be finite and more than 0")
        if not 1 <= action_dim <= latent_dim:
            raise ValueError(
                f"action_dim is {action_dim}; it must be from 1 to latent_dim, {latent_dim}"
            )
        self.horizon = horizon
        self.task_cue = task_cue
        self.noise = noise
        self.initial_std = initial_std
        self.state_cost = state_cost
        self.action_cost = action_cost
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
        """Draw A (tasks, n, n), B (tasks, n, m), targets (tasks, n) and C (n, all sensors)."""
        angle = 0.3
        twist = 0.5
        amplitude = 0.8
        identity = np.eye(n)
        frame = np.linalg.qr(rng.standard_normal((n, m)))[0]
        directions = self._directions(rng, tasks, m)
        A: list[npt.NDArray[np.float64]] = []
        B: list[npt.NDArray[np.float64]] = []
        targets: list[npt.NDArray[np.float64]] = []
        for k in range(tasks):
            A_k = _rotation(rng, n, angle) * rng.uniform(0.6, 0.8)
            U_k = _rotation(rng, n, twist) @ frame
            A.append(A_k)
            B.append((identity - A_k) @ U_k / amplitude)
            targets.append(U_k @ directions[k])
        self.A, self.B, self.targets = (np.stack(v).astype(np.float32) for v in (A, B, targets))
        # a constant action a settles at U_k a / amplitude, so amplitude * d_k holds U_k d_k
        C = rng.standard_normal((n, modalities, sensors))
        sees = np.arange(n)[:, None] % modalities == np.arange(modalities)[None, :]
        C = np.where(sees[:, :, None], C, 0.0).reshape(n, modalities * sensors)
        self._C = C.astype(np.float32)
        self._sensors = (modalities, sensors)

    @staticmethod
    def _directions(rng: np.random.Generator, tasks: int, m: int) -> npt.NDArray[np.float64]:
        """Draw unit vectors (tasks, m), as different as possible without being opposed.

        The first m are orthogonal. Each later one has the smallest largest cosine with those
        before it, with a penalty for pointing against any of them.
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
        """Return an upper bound on one step's cost, for noise within 10 standard deviations."""
        radius = np.linalg.norm(self.A, ord=2, axis=(1, 2)).max()
        push = np.linalg.norm(self.B, ord=2, axis=(1, 2)).max() * np.sqrt(self.B.shape[2])
        jolt = self.noise * 10 * np.sqrt(self.A.shape[1])
        initial = 10 * self.initial_std * np.sqrt(self.A.shape[1])
        farthest = max((push + jolt) / (1 - radius), initial)
        return float(self.state_cost * (farthest + 1) ** 2 + self.action_cost * self.B.shape[2])

    def _gather(self) -> None:
        """Group the copies by task; a single task gets a slice, which avoids copying arrays."""
        played = np.unique(self.task)
        self._groups: list[tuple[int, Any]] = [
            (int(k), np.flatnonzero(self.task == k)) for k in played
        ]
        if len(played) == 1:
            self._groups = [(int(played[0]), slice(None))]
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
            raise ValueError(
                f"actions have shape {a.shape}; they must have shape {self.action_space.shape}"
            )
        self.np_random.standard_normal(out=self._noise, dtype=np.float32)
        self._noise *= np.float32(self.noise)
        for k, copies in self._groups:
            self._noise[copies] += self._x[copies] @ self.A[k].T + a[copies] @ self.B[k].T
        self._x, self._noise = self._noise, self._x  # the next step overwrites the old state
        error = self._x - self._target
        return error**2 @ self._minus_q + a**2 @ self._minus_r, {}

    def _observe(self) -> Observation:
        modalities, size = self._sensors
        readings = self._x @ self._C
        np.tanh(readings, out=readings)
        observation: Observation = {
            f"sensor_{m}": readings[:, m * size : (m + 1) * size] for m in range(modalities)
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
        """Return the task as a finite-horizon linear-quadratic problem on the true state.

        Raises:
            ValueError: If there is no such task.
        """
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
        """Return the mean returns of uniform random actions and of the best policy.

        The first is estimated from 2,000 episodes; the second is the Riccati solution in closed
        form.

        Raises:
            ValueError: If there is no such task.
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
    """`everloop/Plant-v0`, one copy; parameters as for `PlantVectorEnv`."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(PlantVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **parameters))


def _rotation(rng: np.random.Generator, n: int, angle: float) -> npt.NDArray[np.float64]:
    """Draw a rotation (n, n) whose largest plane angle is `angle` radians.

    It is the Cayley transform of a random skew-symmetric matrix.
    """
    if n == 1:
        return np.eye(1)
    skew = rng.standard_normal((n, n))
    skew -= skew.T
    skew *= np.tan(angle / 2) / np.linalg.norm(skew, 2)
    return np.asarray(np.linalg.solve(np.eye(n) - skew, np.eye(n) + skew), dtype=np.float64)
