"""The contract of a world as an executable test, for any environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from everloop.contract import Task


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def check_task_env(env: gym.Env[Any, Any], steps: int = 20, seed: int = 0) -> None:
    """Check that `env` keeps the contract of a world.

    The checks are:

    - `tasks` has the ids 0..K-1 and unique names;
    - observations are in a Dict of Boxes;
    - a reset switches the task by id and by name, and without a task keeps it;
    - an unknown task is refused, and the task does not change;
    - `info["task"]` is right at every reset and step;
    - the same seed, task and actions give the same trajectory;
    - no two calls return arrays that share memory;
    - `reference` is consistent.

    Gymnasium's `check_env` covers the rest.

    Args:
        env: A single world, wrapped or not.
        steps: Steps to play in each check.
        seed: Seed of the environment and of the actions.

    Raises:
        AssertionError: If `env` breaks the contract. The message is one sentence.
    """
    tasks = _check_tasks(env)
    _check_spaces(env)
    for task in tasks:
        _check_switch(env, task, steps, seed)
        _check_reproducible(env, task, steps, seed)
        _check_reference(env, task)
    _check_unknown(env, tasks)


def _check_tasks(env: gym.Env[Any, Any]) -> tuple[Task, ...]:
    _require(
        env.has_wrapper_attr("tasks"),
        "the world has no attribute `tasks`; it needs a tuple of Task",
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


def _check_spaces(env: gym.Env[Any, Any]) -> None:
    space = env.observation_space
    _require(
        isinstance(space, spaces.Dict),
        f"the observation space is {space}; it must be a Dict with one Box per modality",
    )
    assert isinstance(space, spaces.Dict)
    for name, part in space.spaces.items():
        _require(isinstance(part, spaces.Box), f"modality {name!r} is {part}; it must be a Box")
        if len(part.shape or ()) == 3:
            _require(
                part.dtype == np.uint8,
                f"image modality {name!r} has dtype {part.dtype}; it must be uint8 (H, W, C)",
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
    for _ in range(steps):
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
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
    _require(env.has_wrapper_attr("reference"), "the world has no method `reference(task)`")
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
