"""Resetting a world to tasks, and checking the numbers that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.contract import Observation, World


class NotFiniteError(FloatingPointError):
    """An observation, a reward, a loss or a gradient is nan or infinite.

    The message names it and the step.
    """

    limit_reached = False
    """True if the run may not be rolled back once more."""


class Diverged(NotFiniteError):
    """Training has diverged: a loss or a gradient is nan, infinite or above a limit.

    A lower learning rate may prevent it, unlike an observation or a reward that is not finite.
    """


def reset_to_tasks(
    world: World, tasks: Sequence[int], seed: int | None = None
) -> tuple[Observation, npt.NDArray[np.int64]]:
    """Reset a world to one or several tasks.

    A data set shows the examples of several tasks in shuffled passes over their union. In other
    worlds copy i plays the task `tasks[i % len(tasks)]`.

    Args:
        world: The world, of `world.num_envs` copies.
        tasks: Ids of the tasks, at least one. Unless it is a data set, at most as many as there are
            copies.
        seed: Seed of the reset; None continues the world's generators.

    Returns:
        The first observation, and the task id of each copy, (B,).

    Raises:
        ValueError: If there are more tasks than copies, or the world plays other tasks.
    """
    if mixed := mixed_tasks(world, tasks):
        obs, info = world.reset(seed=seed, options={"task": mixed})
        check_tasks(world, info, np.zeros(world.num_envs, dtype=np.int64), mixed)
        return obs, info["task"]
    if len(tasks) > world.num_envs:
        raise ValueError(
            f"there are {len(tasks)} tasks but only {world.num_envs} copies of the world; use at "
            "least one copy a task"
        )
    of_copy = np.resize(np.asarray(tasks, dtype=np.int64), world.num_envs)
    obs, info = world.reset(seed=seed, options={"task": int(tasks[0])})
    for task in tasks[1:]:
        obs, info = world.reset(options={"task": int(task), "reset_mask": of_copy == task})
    check_tasks(world, info, of_copy)
    return obs, of_copy


def reset_to_phase(
    world: World, tasks: Sequence[int], place: Sequence[int], seed: int | None = None
) -> tuple[Observation, npt.NDArray[np.int64]]:
    """Reset a world to the tasks of a phase, so that a restored run finds the same.

    A world that gives its state goes on with its own random generators, which a checkpoint holds.
    Another one is seeded from its place in the run.

    Args:
        world: The world.
        tasks: Ids of the tasks, as for `reset_to_tasks`.
        place: Seed of the run, and the step, 0 or more.
        seed: Seed of a world that gives its state; None continues its generators.
    """
    found = reset_to_tasks(world, tasks, seed)
    return found if world.state_dict() is not None else reset_to_tasks(world, tasks, seed_at(place))


def seed_at(place: Sequence[int]) -> int:
    """Return a seed for a place in a run: its own seed and the step, each 0 or more."""
    return int(np.random.SeedSequence(list(place)).generate_state(1)[0])


def mixed_tasks(world: World, tasks: Sequence[int]) -> list[int]:
    """Return `tasks` if the world shuffles the examples of several tasks together, else none."""
    return list(tasks) if len(tasks) > 1 and world.examples(tasks) is not None else []


def check_tasks(
    world: World, info: dict[str, Any], asked: npt.NDArray[np.int64], mixed: Sequence[int] = ()
) -> None:
    """Check that the copies of a world play the tasks that they were asked to play.

    Args:
        world: The world, for the message.
        info: The info of a reset or a step.
        asked: The ID of each copy's task, (B,).
        mixed: Tasks that are shuffled together, of which each copy may play any.

    Raises:
        ValueError: If `info["task"]` is missing or differs.
    """
    played: Any = info.get("task")
    # the fast way to compare small arrays, since this is done in every step
    if getattr(played, "dtype", None) == asked.dtype and played.tobytes() == asked.tobytes():
        return
    if len(mixed) and np.shape(played) == asked.shape:
        asked = np.where(np.isin(played, mixed), played, mixed[0])
    if np.array_equal(played, asked):
        return
    if np.shape(played) != asked.shape:
        raise ValueError(
            f'info["task"] is {played!r} in {_layers(world)}; return the task of every copy at '
            "every reset and step"
        )
    copy = int(np.flatnonzero(played != asked)[0])
    raise ValueError(
        f"copy {copy} of the world plays task {np.asarray(played)[copy]} instead of task "
        f"{asked[copy]}: a reset in {_layers(world)} drops its options; pass `options` on to the "
        "wrapped environment, and keep the task when there are none"
    )


def _layers(world: Any) -> str:
    """Return the names of a world and its wrappers, and of its first copy's, outermost first."""
    names = []
    while world is not None:
        names.append(type(world).__name__)
        copies = getattr(world, "envs", None)
        world = copies[0] if copies else getattr(world, "env", None)
    return " > ".join(names)


def labels_of(info: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Return the labels in the info of a step, (B, ...).

    Raises:
        ValueError: If there are none.
    """
    if "label" not in info:
        raise ValueError(
            'the world\'s info has no "label"; supervised learning needs a world that reveals it'
        )
    return np.asarray(info["label"], dtype=np.int64)


def check_finite(
    obs: Observation,
    step: int,
    rewards: npt.NDArray[Any] | None = None,
    what: str = "observation",
) -> None:
    """Check that all numbers of a step are finite.

    Args:
        obs: Observation of each modality by name. Integers are not checked.
        step: World steps so far, for the message.
        rewards: Rewards of the copies, (B,), if there are any.
        what: What `obs` is, for the message.

    Raises:
        NotFiniteError: If a number is not. It names the modality, or the reward.
    """
    if rewards is not None and not np.isfinite(rewards).all():
        raise NotFiniteError(
            f"a reward is {rewards[~np.isfinite(rewards)].flat[0]} at step {step}; rewards must be "
            "finite"
        )
    for name, value in obs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = value[~np.isfinite(value)].flat[0]
            raise NotFiniteError(
                f"{what} {name!r} holds {bad} at step {step}; observations must be finite"
            )
