"""The contract of a world, executable for anybody's environment."""

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
    """Raise AssertionError, in one sentence, where `env` breaks the contract of a world.

    Checked: `tasks` (ids 0..K-1, unique names), observations in a Dict of Boxes, task switches by
    id and by name, that a plain reset keeps the task, that an unknown task is refused without
    changing it, `info["task"]` everywhere, the same trajectory from the same seed, task and
    actions, arrays not shared between calls, and `reference`. Use it beside Gymnasium's
    `check_env`, which covers the rest.
    """
    tasks = _check_tasks(env)
    _check_spaces(env)
    for task in tasks:
        _check_switch(env, task, steps, seed)
        _check_reproducible(env, task, steps, seed)
        _check_reference(env, task)
    _check_unknown(env, tasks)


def _check_tasks(env: gym.Env[Any, Any]) -> tuple[Task, ...]:
    _require(env.has_wrapper_attr("tasks"), "the world has no attribute `tasks`")
    tasks = env.get_wrapper_attr("tasks")
    _require(
        isinstance(tasks, tuple) and len(tasks) > 0,
        f"`tasks` is {tasks!r}, expected a tuple of at least one Task",
    )
    _require(
        all(isinstance(task, Task) for task in tasks),
        f"`tasks` holds {tasks!r}, expected Task objects",
    )
    ids = [task.id for task in tasks]
    _require(
        ids == list(range(len(tasks))),
        f"the tasks' ids are {ids}, expected 0 to {len(tasks) - 1} in order",
    )
    names = [task.name for task in tasks]
    _require(len(set(names)) == len(names), f"the tasks' names {names} are not unique")
    checked: tuple[Task, ...] = tasks
    return checked


def _check_spaces(env: gym.Env[Any, Any]) -> None:
    space = env.observation_space
    _require(
        isinstance(space, spaces.Dict),
        f"the observation space is {space}, expected a Dict with one Box a modality",
    )
    assert isinstance(space, spaces.Dict)
    for name, part in space.spaces.items():
        _require(isinstance(part, spaces.Box), f"modality {name!r} is {part}, expected a Box")
        if len(part.shape or ()) == 3:
            _require(
                part.dtype == np.uint8,
                f"image modality {name!r} has dtype {part.dtype}, expected uint8 (H, W, C)",
            )


def _check_switch(env: gym.Env[Any, Any], task: Task, steps: int, seed: int) -> None:
    for key in (task.id, task.name):
        observation, info = env.reset(seed=seed, options={"task": key})
        _require(
            info.get("task") == task.id,
            f'info["task"] is {info.get("task")!r} after reset to task {key!r}, expected {task.id}',
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
            f'info["task"] is {info.get("task")!r} in a step of task {task.id}',
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
                f"modality {shared!r} shares memory between two calls, return a fresh array",
            )


def _check_reference(env: gym.Env[Any, Any], task: Task) -> None:
    _require(env.has_wrapper_attr("reference"), "the world has no method `reference(task)`")
    random, best = env.get_wrapper_attr("reference")(task.id)
    known = not (np.isnan(random) or np.isnan(best))
    _require(
        not known or best > random,
        f"reference({task.name!r}) is ({random}, {best}), expected random < best, or nan",
    )


def _check_unknown(env: gym.Env[Any, Any], tasks: tuple[Task, ...]) -> None:
    env.reset(seed=0, options={"task": tasks[0].id})
    for key in (len(tasks), "no such task"):
        try:
            env.reset(options={"task": key})
        except ValueError as error:
            _require(
                str(key) in str(error),
                f"the error for the unknown task {key!r} does not name it: {error}",
            )
        else:
            raise AssertionError(f"reset to the unknown task {key!r} raised no ValueError")
    _, info = env.reset()
    _require(info["task"] == tasks[0].id, "a refused task switch changed the task")
