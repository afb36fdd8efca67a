"""The contract of a world as an executable test, for any environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from everloop.contract import (
    CUE,
    FEEDBACK,
    LONGEST_EPISODE,
    PRESENCE,
    WORLD,
    Task,
    modality_kind,
)
from everloop.envs.feedback import feedback_space
from everloop.envs.task import reward_range_of


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def check_task_env(
    env: gym.Env[Any, Any], steps: int = 20, seed: int = 0, longest: int = LONGEST_EPISODE
) -> None:
    """Check that `env` keeps the contract of a world.

    The checks are:

    - `tasks` has the ids 0..K-1 and unique names;
    - observations are in a Dict of Boxes, and each says what it is (`modality_kind`);
    - the reserved names "cue", "presence" and "feedback" are used for what they mean;
    - the spaces are the same for all tasks;
    - rewards are in `reward_range`;
    - a reset switches the task by id and by name, and without a task keeps it;
    - an unknown task is refused, and the task does not change;
    - `info["task"]` is right at every reset and step;
    - the same seed, task and actions give the same trajectory;
    - no two calls return arrays that share memory;
    - `reference` is consistent;
    - episodes under random actions end.

    Gymnasium's `check_env` covers the rest.

    Args:
        env: A single world, wrapped or not.
        steps: Steps to play in each check.
        seed: Seed of the environment and of the actions.
        longest: Steps within which an episode must end. It is not checked in a data set.

    Raises:
        AssertionError: If `env` breaks the contract. The message is one sentence.
    """
    tasks = _check_tasks(env)
    _check_spaces(env, len(tasks))
    shown = copy.deepcopy((env.observation_space, env.action_space))
    for task in tasks:
        _check_switch(env, task, steps, seed)
        _check_same_spaces(env, task, *shown)
    for task in tasks:
        _check_reproducible(env, task, steps, seed)
        _check_reference(env, task)
        _check_end(env, task, longest, seed)
    _check_unknown(env, tasks)


def _check_tasks(env: gym.Env[Any, Any]) -> tuple[Task, ...]:
    _require(
        env.has_wrapper_attr("tasks"),
        "the world has no attribute `tasks`; it needs a tuple of Task",
    )
    missing = [name for name in WORLD if not env.has_wrapper_attr(name)]
    _require(
        not missing, f"the world has no {', '.join(missing)}; derive it from everloop.envs.TaskEnv"
    )
    tasks = env.get_wrapper_attr("tasks")
    _require(
        isinstance(tasks, tuple) and len(tasks) > 0,
        f"`tasks` is {tasks!r}; it must be a tuple of at least one Task",
    )
    _require(
        all(isinstance(task, Task) for task in tasks),
        f"`tasks` is {tasks!r}; it must hold Task objects only",
    )
    ids = [task.id for task in tasks]
    _require(
        ids == list(range(len(tasks))),
        f"the tasks' ids are {ids}; they must be 0 to {len(tasks) - 1} in order",
    )
    names = [task.name for task in tasks]
    _require(len(set(names)) == len(names), f"the tasks' names are {names}; they must be unique")
    checked: tuple[Task, ...] = tasks
    return checked


def _check_spaces(env: gym.Env[Any, Any], tasks: int) -> None:
    space = env.observation_space
    _require(
        isinstance(space, spaces.Dict),
        f"the observation space is {space}; it must be a Dict with one Box per modality",
    )
    assert isinstance(space, spaces.Dict)
    for name, part in space.spaces.items():
        _require(isinstance(part, spaces.Box), f"modality {name!r} is {part}; it must be a Box")
        assert isinstance(part, spaces.Box)
        try:
            modality_kind(name, part)
        except ValueError as error:
            raise AssertionError(str(error)) from None
    _check_reserved_names(env, space.spaces, tasks)


def _check_reserved_names(
    env: gym.Env[Any, Any], parts: Mapping[str, spaces.Space[Any]], tasks: int
) -> None:
    def require_shape(name: str, size: int, meaning: str) -> None:
        if name in parts:
            _require(
                parts[name].shape == (size,) and parts[name].dtype.kind == "f",  # type: ignore[union-attr]
                f"modality {name!r} is {parts[name]}, but this name is reserved for {meaning}, "
                f"float32 ({size},); rename the modality",
            )

    require_shape(CUE, tasks, "the one-hot task")
    require_shape(
        PRESENCE, len(set(parts) - {PRESENCE}), "1 or 0 for each other modality, present or not"
    )
    if FEEDBACK in parts:
        size = feedback_space(env.action_space, (0.0, 0.0)).shape[0]
        require_shape(FEEDBACK, size, "the previous action and reward")


def _check_same_spaces(
    env: gym.Env[Any, Any],
    task: Task,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> None:
    for name, now, before in (
        ("observation", env.observation_space, observation_space),
        ("action", env.action_space, action_space),
    ):
        _require(
            now == before,
            f"the {name} space of task {task.name!r} is {now} instead of {before}; use one space "
            "for all tasks, large enough for each",
        )


def _check_end(env: gym.Env[Any, Any], task: Task, longest: int, seed: int) -> None:
    """Check that an episode ends; a data set, whose passes end, may have endless episodes."""
    if env.get_wrapper_attr("examples")(task.id) is not None:
        return
    env.action_space.seed(seed)
    env.reset(seed=seed, options={"task": task.id})
    for _ in range(longest):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            return
    raise AssertionError(
        f"an episode of task {task.name!r} has not ended after {longest} steps; truncate it, for "
        "example with gymnasium.wrappers.TimeLimit"
    )


def _check_switch(env: gym.Env[Any, Any], task: Task, steps: int, seed: int) -> None:
    for key in (task.id, task.name):
        observation, info = env.reset(seed=seed, options={"task": key})
        _require(
            info.get("task") == task.id,
            f'info["task"] is {info.get("task")!r} after a reset to task {key!r}; '
            f"it must be {task.id}",
        )
        _require(
            observation in env.observation_space,
            f"the observation of task {key!r} is outside the observation space",
        )
    env.action_space.seed(seed)
    low, high = reward_range_of(env)
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        _require(
            low <= float(reward) <= high,
            f"a reward of task {task.name!r} is {reward}, outside reward_range, ({low}, {high}); "
            "correct the range",
        )
        _require(
            info.get("task") == task.id,
            f'info["task"] is {info.get("task")!r} after a step; it must be {task.id}',
        )
        _require(
            observation in env.observation_space,
            f"an observation of task {task.name!r} is outside the observation space",
        )
        if terminated or truncated:
            break
    _, info = env.reset()
    _require(
        info.get("task") == task.id,
        f"a reset without options changed the task from {task.id} to {info.get('task')!r}",
    )


def _rollout(env: gym.Env[Any, Any], task: Task, steps: int, seed: int) -> list[Any]:
    env.action_space.seed(seed)
    calls: list[Any] = [env.reset(seed=seed, options={"task": task.id})[0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        calls += [observation, reward, terminated, truncated]
        if terminated or truncated:
            calls.append(env.reset()[0])
    return calls


def _check_reproducible(env: gym.Env[Any, Any], task: Task, steps: int, seed: int) -> None:
    first, second = (_rollout(env, task, steps, seed) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        same = all(np.array_equal(a[k], b[k]) for k in a) if isinstance(a, dict) else a == b
        _require(
            same, f"two runs of task {task.name!r} with seed {seed} and the same actions differ"
        )
    kept = [call for call in first if isinstance(call, dict)]
    for i, a in enumerate(kept):
        for b in kept[i + 1 :]:
            shared = next((k for k in a if np.shares_memory(a[k], b[k])), None)
            _require(
                shared is None,
                f"modality {shared!r} shares memory between two calls; return a new array",
            )


def _check_reference(env: gym.Env[Any, Any], task: Task) -> None:
    random, best = env.get_wrapper_attr("reference")(task.id)
    known = not (np.isnan(random) or np.isnan(best))
    _require(
        not known or best > random,
        f"reference({task.name!r}) is ({random}, {best}); the random agent's return must be below "
        "the best one's, or one of them nan",
    )


def _check_unknown(env: gym.Env[Any, Any], tasks: tuple[Task, ...]) -> None:
    env.reset(seed=0, options={"task": tasks[0].id})
    for key in (len(tasks), "no such task"):
        try:
            env.reset(options={"task": key})
        except ValueError as error:
            _require(
                str(key) in str(error),
                f"the error for the unknown task {key!r} is {str(error)!r}; it must name the task",
            )
        else:
            raise AssertionError(
                f"a reset to the unknown task {key!r} succeeded; it must raise ValueError"
            )
    _, info = env.reset()
    _require(info["task"] == tasks[0].id, "a refused task switch changed the task; it must keep it")
