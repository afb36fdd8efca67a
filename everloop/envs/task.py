"""The contract of a world: a Gymnasium environment whose task can be switched at a reset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from everloop.contract import RETURN, Metric, Observation, Task

Mask = npt.NDArray[np.bool_]
UNKNOWN_RANGE = (-np.inf, np.inf)


def find_task(tasks: Sequence[Task], key: Any) -> Task:
    """Return the task with the id or the name `key`.

    Raises:
        ValueError: If there is none. The message names `key` and the choices.
    """
    is_id = isinstance(key, (int, np.integer)) and not isinstance(key, bool)
    for task in tasks:
        if (is_id and key == task.id) or (isinstance(key, str) and key == task.name):
            return task
    names = ", ".join(task.name for task in tasks)
    raise ValueError(
        f"unknown task {key!r}: choose an id from 0 to {len(tasks) - 1} or one of {names}"
    )


def reward_range_of(env: Any) -> tuple[float, float]:
    """Return the lowest and highest reward of a step; infinite if `env` does not say."""
    if isinstance(env, gym.Env):
        known = env.has_wrapper_attr("reward_range")
        low, high = env.get_wrapper_attr("reward_range") if known else UNKNOWN_RANGE
    else:
        low, high = getattr(env, "reward_range", UNKNOWN_RANGE)
    return float(low), float(high)


class _Described:
    """Defaults of the methods that describe a world's tasks."""

    tasks: tuple[Task, ...]

    def reference(self, task: int | str) -> tuple[float, float]:
        """Return the mean episode returns of a random agent and of the best known agent.

        Both are nan unless a subclass knows them, because a return that cannot be scaled has no
        score.

        Raises:
            ValueError: If there is no such task.
        """
        find_task(self.tasks, task)
        return float("nan"), float("nan")

    def metric(self, task: int | str) -> Metric:
        """Return what an evaluation of `task` measures; the return unless overridden.

        Raises:
            ValueError: If there is no such task.
        """
        find_task(self.tasks, task)
        return RETURN

    def examples(self, task: int | str | Sequence[int]) -> int | None:
        """Return the number of examples in one pass over `task`; None if it is no data set.

        Args:
            task: An id or a name; or several ids, for a pass over the union of these tasks.

        Raises:
            ValueError: If there is no such task.
        """
        for one in [task] if isinstance(task, int | str) else task:
            find_task(self.tasks, one)
        return None

    def show(
        self, task: int, rows: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.int64]] | None:
        """Return examples of a data set, (n, ...), and their labels; None unless overridden.

        Args:
            task: Id of the task.
            rows: What `info["index"]` was when the examples were shown, (n,).
        """
        return None


class TaskEnv(_Described, gym.Env[Observation, Any]):
    """A single-copy world. Subclass it to write your own.

    A subclass sets `tasks`, the two spaces and `reward_range`. Its `reset` first calls
    `super().reset(seed=seed, options=options)`, which seeds `np_random` and sets `task` if
    `options={"task": id_or_name}` asks for it. A reset without the option keeps the task, because
    autoreset passes no options. The subclass puts `self.task.id` in `info["task"]` at every reset
    and step. `check_task_env` tests all of this.
    """

    tasks: tuple[Task, ...]
    task: Task
    reward_range: tuple[float, float] = UNKNOWN_RANGE

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Seed the generator and switch the task.

        Args:
            seed: Seed of `np_random`; None keeps its state.
            options: `{"task": id_or_name}` to switch the task.

        Returns:
            An empty observation and the info, which a subclass completes.

        Raises:
            ValueError: If there is no such task.
        """
        if options and "task" in options:
            self.task = find_task(self.tasks, options["task"])
        elif not hasattr(self, "task"):
            self.task = self.tasks[0]
        super().reset(seed=seed)
        return {}, {"task": self.task.id}

    def state_dict(self) -> dict[str, Any] | None:
        """Return the complete state for `load_state_dict`; None if the world cannot."""
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            NotImplementedError: If the world does not return its state.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not return its state, so it cannot restore one"
        )


class TaskVectorEnv(_Described, VectorEnv[Observation, npt.NDArray[Any], npt.NDArray[Any]]):
    """A natively batched world: `num_envs` copies advanced by one array operation.

    A subclass sets `tasks`, `single_observation_space`, `single_action_space` and `horizon`, then
    calls `super().__init__(num_envs, autoreset_mode)`. It implements `_begin`, `_advance` and
    `_observe`, and `_terminated` if episodes may end before `horizon`. This class keeps the
    contract: seeding, task switches, episode ends and autoreset.

    `reset(options=...)` takes `"task"` (id or name) and `"reset_mask"`, bool (num_envs,), which
    restricts the reset and the switch to those copies. Copies may therefore play different tasks.

    Autoreset is SAME_STEP, as in Stable-Baselines3: the step that ends an episode already returns
    the first observation of the next one, and `info["final_obs"]` holds the last observation.
    DISABLED leaves the reset to the caller.

    Args:
        num_envs: Number of copies, 1 or more.
        autoreset_mode: SAME_STEP or DISABLED.

    Raises:
        ValueError: If `num_envs` is below 1 or the autoreset mode is NEXT_STEP.
    """

    tasks: tuple[Task, ...]
    reward_range: tuple[float, float] = UNKNOWN_RANGE
    horizon: int

    def __init__(
        self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 or more")
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset_mode is NextStep; choose SameStep or Disabled")
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "autoreset_mode": mode}
        self._autoreset = mode is AutoresetMode.SAME_STEP
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.task = np.zeros(num_envs, dtype=np.int64)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes, in another task if `options` names one.

        Args:
            seed: Seed of `np_random`; None keeps its state.
            options: "task", an id or a name, and "reset_mask", bool (num_envs,), the copies to
                reset. By default the task stays and all copies are reset.

        Returns:
            The observation of all copies, and the info.

        Raises:
            ValueError: If the task is unknown or the mask has the wrong shape. Nothing has changed
                then.
        """
        options = options or {}
        mask = self._mask(options.get("reset_mask"))
        source = self._find_source(options["task"]) if "task" in options else None
        super().reset(seed=seed)
        if source is not None:
            self._switch(mask, source)
        self._elapsed[mask] = 0
        self._begin(mask, seeded=seed is not None)
        return self._observe(), {"task": self.task.copy()}

    def _mask(self, given: Any) -> Mask:
        if given is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask: Mask = np.asarray(given)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"reset_mask has shape {mask.shape} and dtype {mask.dtype}; it must have "
                f"shape ({self.num_envs},), dtype bool and at least one True"
            )
        return mask

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Advance every copy by one step; shapes as in `gymnasium.vector.VectorEnv.step`."""
        rewards, info = self._advance(actions)
        self._elapsed += 1
        terminated = self._terminated()
        truncated = self._elapsed >= self.horizon
        ended = terminated | truncated
        info["task"] = self.task.copy()
        observation = self._observe()
        if self._autoreset and ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            last = zip(*(value[ended] for value in observation.values()), strict=True)
            for i, values in zip(np.flatnonzero(ended), last, strict=True):
                final[i] = dict(zip(observation, values, strict=True))
            self._elapsed[ended] = 0
            self._begin(ended, seeded=False)
            observation = self._observe()
            final_info = {key: value.copy() for key, value in info.items()}
            info |= {"final_obs": final, "_final_obs": ended.copy()}
            info |= {"final_info": final_info, "_final_info": ended.copy()}
        return observation, rewards, terminated, truncated, info

    def state_dict(self) -> dict[str, Any] | None:
        """Return the complete state for a world made alike; None if the subclass cannot."""
        own = self._world_state()
        if own is None:
            return None
        return {
            "task": self.task.copy(),
            "elapsed": self._elapsed.copy(),
            "np_random": self.np_random.bit_generator.state,
            "own": own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it has another number of copies.
            NotImplementedError: If the world does not return its state.
        """
        if len(state["task"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['task'])} copies; this world has {self.num_envs}"
            )
        self.task, self._elapsed = state["task"].copy(), state["elapsed"].copy()
        self.np_random.bit_generator.state = state["np_random"]
        self._load_world_state(state["own"])

    def _find_source(self, key: Any) -> int:
        """Return what the option "task" asks for: the id of a task, unless a subclass has more.

        Raises:
            ValueError: If there is no such task.
        """
        return find_task(self.tasks, key).id

    def _switch(self, mask: Mask, source: int) -> None:
        """Switch the copies of `mask` to what `_find_source` returned."""
        self.task[mask] = source

    def _world_state(self) -> dict[str, Any] | None:
        """Return everything else that the next step depends on; None if the subclass cannot."""
        return None

    def _load_world_state(self, own: Mapping[str, Any]) -> None:
        """Restore what `_world_state` returned."""
        raise NotImplementedError(
            f"{type(self).__name__} does not return its state, so it cannot restore one"
        )

    def _begin(self, mask: Mask, seeded: bool) -> None:
        """Start new episodes in the copies of `mask`; `seeded` if `np_random` was just seeded."""
        raise NotImplementedError

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Advance all copies; return rewards (num_envs,) and info arrays of that length."""
        raise NotImplementedError

    def _terminated(self) -> Mask:
        """Return a new array, True where the last step ended the task itself; by default nowhere.

        The end at `horizon` is a truncation, which need not be returned.
        """
        return np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        """Return new arrays, one per modality, (num_envs, ...)."""
        raise NotImplementedError


class OneCopyEnv(TaskEnv):
    """The single environment of a batched world: one copy, so that the physics is written once."""

    def __init__(self, world: TaskVectorEnv) -> None:
        self.metadata = {"render_modes": []}
        self.world = world
        self.tasks = world.tasks
        self.task = world.tasks[0]
        self.reward_range = world.reward_range
        self.observation_space = world.single_observation_space
        self.action_space = world.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.world.np_random = self.np_random  # one generator, shared
        everyone = np.ones(1, dtype=np.bool_)
        self.world._switch(everyone, self.task.id)
        self.world._elapsed[0] = 0
        self.world._begin(everyone, seeded=seed is not None)
        return self._first(self.world._observe()), {"task": self.task.id}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, rewards, terminated, truncated, info = self.world.step(
            np.asarray(action)[None]
        )
        single = {
            key: value[0].item() if value.ndim == 1 else value[0] for key, value in info.items()
        }
        return (
            self._first(observation),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            single,
        )

    def reference(self, task: int | str) -> tuple[float, float]:
        return self.world.reference(task)

    def metric(self, task: int | str) -> Metric:
        return self.world.metric(task)

    def examples(self, task: int | str | Sequence[int]) -> int | None:
        """Return the number of examples in one pass over one task; None for several tasks."""
        return self.world.examples(task) if isinstance(task, int | str) else None

    def show(
        self, task: int, rows: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.int64]] | None:
        return self.world.show(task, rows)

    def state_dict(self) -> dict[str, Any] | None:
        own = self.world.state_dict()
        return None if own is None else {"task": self.task.id, "world": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.world.load_state_dict(state["world"])
        self.task = self.tasks[state["task"]]
        self.np_random = self.world.np_random

    def close(self) -> None:
        self.world.close()

    @staticmethod
    def _first(observation: Observation) -> Observation:
        return {name: value[0] for name, value in observation.items()}
