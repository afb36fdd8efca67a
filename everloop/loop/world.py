"""Playing a world, and what can go wrong with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.contract import Observation, World


class NotFiniteError(FloatingPointError):
    """An observation, a loss or a gradient is nan or infinite; the message says which, and at which
    step.
    """


def play(
    world: World, tasks: Sequence[int], seed: int | None = None
) -> tuple[Observation, npt.NDArray[np.int64]]:
    """Reset `world` so that its copies play `tasks` in turn: the first observation, and each copy's
    task.
    """
    if len(tasks) > world.num_envs:
        raise ValueError(
            f"{len(tasks)} tasks can't be played by {world.num_envs} copies of the world; use at "
            "least one copy a task"
        )
    played = np.resize(np.asarray(tasks, dtype=np.int64), world.num_envs)
    obs, _ = world.reset(seed=seed, options={"task": int(tasks[0])})
    for task in tasks[1:]:
        obs, _ = world.reset(options={"task": int(task), "reset_mask": played == task})
    return obs, played


def labels_of(info: dict[str, Any]) -> npt.NDArray[np.int64]:
    """The labels that a step has revealed, (B, ...). Raises ValueError if it has not."""
    if "label" not in info:
        raise ValueError(
            'the world\'s info has no "label"; supervised learning needs a world that reveals it'
        )
    return np.asarray(info["label"], dtype=np.int64)


def check_finite(obs: Observation, step: int, rewards: npt.NDArray[Any] | None = None) -> None:
    """Raise NotFiniteError that names the modality, or the reward; integer modalities are finite by
    nature.
    """
    if rewards is not None and not np.isfinite(rewards).all():
        raise NotFiniteError(
            f"a reward is {rewards[~np.isfinite(rewards)].flat[0]} at step {step}, allowed: finite "
            "numbers"
        )
    for name, value in obs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = value[~np.isfinite(value)].flat[0]
            raise NotFiniteError(
                f"observation {name!r} holds {bad} at step {step}, allowed: finite numbers"
            )
