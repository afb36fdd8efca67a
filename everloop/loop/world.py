"""What the loop asks of a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Arrays = dict[str, npt.NDArray[Any]]


class Task(Protocol):
    """A task as the loop sees it."""

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...


class World(Protocol):
    """A `gymnasium.vector.VectorEnv` under SAME_STEP autoreset whose resets take "task" and "reset_mask"."""

    num_envs: int

    @property
    def tasks(self) -> Sequence[Task]: ...

    @property
    def single_observation_space(self) -> spaces.Space[Any]: ...

    @property
    def single_action_space(self) -> spaces.Space[Any]: ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]: ...

    def step(self, actions: npt.NDArray[Any]) -> tuple[Arrays, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]: ...

    def reference(self, task: int) -> tuple[float, float]: ...

    def close(self) -> None: ...


class NotFiniteError(FloatingPointError):
    """An observation, a loss or a gradient is nan or infinite; the message says which, and at which step."""


def play(world: World, tasks: Sequence[int], seed: int | None = None) -> tuple[Arrays, npt.NDArray[np.int64]]:
    """Reset `world` so that its copies play `tasks` in turn: the first observation, and each copy's task."""
    if len(tasks) > world.num_envs:
        raise ValueError(f"{len(tasks)} tasks are to be played by {world.num_envs} copies of the world, allowed: at least one copy a task")
    played = np.resize(np.asarray(tasks, dtype=np.int64), world.num_envs)
    obs, _ = world.reset(seed=seed, options={"task": int(tasks[0])})
    for task in tasks[1:]:
        obs, _ = world.reset(options={"task": int(task), "reset_mask": played == task})
    return obs, played


def labels_of(info: dict[str, Any]) -> npt.NDArray[np.int64]:
    """The labels that a step has revealed, (B, ...). Raises ValueError if it has not."""
    if "label" not in info:
        raise ValueError('the world\'s info has no "label", allowed for supervised learning: worlds that reveal it')
    return np.asarray(info["label"], dtype=np.int64)


def check_finite(obs: Arrays, step: int, rewards: npt.NDArray[Any] | None = None) -> None:
    """Raise NotFiniteError that names the modality, or the reward; integer modalities are finite by nature."""
    if rewards is not None and not np.isfinite(rewards).all():
        raise NotFiniteError(f"a reward is {rewards[~np.isfinite(rewards)].flat[0]} at step {step}, allowed: finite numbers")
    for name, value in obs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = value[~np.isfinite(value)].flat[0]
            raise NotFiniteError(f"observation {name!r} holds {bad} at step {step}, allowed: finite numbers")
