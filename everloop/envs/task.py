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


def find_task(tasks: Sequence[Task], key: Any) -> Task:
    """The task with the id or the name `key`.

    Raises ValueError that names `key` and what is allowed.
    """
    is_id = isinstance(key, (int, np.integer)) and not isinstance(key, bool)
    for task in tasks:
        if (is_id and key == task.id) or (isinstance(key, str) and key == task.name):
            return task
    names = ", ".join(task.name for task in tasks)
    raise ValueError(
        f"unknown task {key!r}: choose an id from 0 to {len(tasks) - 1} or one of {names}"
    )


class _Described:
    """What a world says of its tasks, unless a subclass knows better."""

    tasks: tuple[Task, ...]

    def reference(self, task: int | str) -> tuple[float, float]:
        """(return of a random agent, return of the best known agent) in one episode of `task`.

        Both are nan unless a subclass knows them: a score that nobody can scale is not zero.
        """
        find_task(self.tasks, task)
        return float("nan"), float("nan")

    def metric(self, task: int | str) -> Metric:
        """What an evaluation of `task` measures: the return, unless a subclass says otherwise."""
        find_task(self.tasks, task)
        return RETURN

    def examples(self, task: int | str) -> int | None:
        """The number of examples in one pass over the task's data; None: this is no data set."""
        find_task(self.tasks, task)
        return None


class TaskEnv(_Described, gym.Env[Observation, Any]):
    """A single-copy world. Subclass it to write your own.

    A subclass sets `tasks`, the two spaces and `reward_range`, and in its `reset` calls
    `super().reset(seed=seed, options=options)` first: that seeds `np_random` and switches
    `task` when `options={"task": id_or_name}` asks for it. A reset without the option keeps
    the task, because autoreset passes no options. It puts `self.task.id` in `info["task"]` of
    every reset and step. `check_task_env` tests all of this.
    """

    tasks: tuple[Task, ...]
    task: Task
    reward_range: tuple[float, float] = (-np.inf, np.inf)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Seed the generator and switch the task. Subclasses return the observation and info."""
        if options and "task" in options:
            self.task = find_task(self.tasks, options["task"])
        elif not hasattr(self, "task"):
            self.task = self.tasks[0]
        super().reset(seed=seed)
        return {}, {"task": self.task.id}

    def state_dict(self) -> dict[str, Any] | None:
        """Where the world stands, for `load_state_dict`; None: it can't say."""
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises NotImplementedError for a world that gives no state.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no state, so it takes none")


class TaskVectorEnv(_Described, VectorEnv[Observation, npt.NDArray[Any], npt.NDArray[Any]]):
    """A natively batched world: `num_envs` copies advanced by one array operation.

    A subclass sets `tasks`, `single_observation_space`, `single_action_space`, `horizon` and
    calls `super().__init__(num_envs, autoreset_mode)`; it implements `_begin`, `_advance` and
    `_observe`. This class keeps the contract: seeding, task switches, episode ends, autoreset.

    `reset(options=...)` takes `"task"` (id or name) and `"reset_mask"` (bool, shape (num_envs,)),
    which restricts the reset, and the switch, to those copies: copies may play different tasks.

    Autoreset is SAME_STEP, as Stable-Baselines3 has it: the step which ends an episode already
    returns the first observation of the next, and the last one is `info["final_obs"]`. DISABLED
    leaves the reset to the caller.
    """

    tasks: tuple[Task, ...]
    reward_range: tuple[float, float] = (-np.inf, np.inf)
    horizon: int

    def __init__(
        self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, allowed: 1 or more")
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise ValueError(
                "autoreset_mode NextStep is not supported, allowed: SameStep, Disabled"
            )
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

        Raises ValueError for an unknown task or a mask of the wrong shape; nothing has changed
        then.
        """
        options = options or {}
        mask = self._mask(options.get("reset_mask"))
        task = find_task(self.tasks, options["task"]).id if "task" in options else None
        super().reset(seed=seed)
        if task is not None:
            self.task[mask] = task
        self._elapsed[mask] = 0
        self._begin(mask, seeded=seed is not None)
        return self._observe(), {"task": self.task.copy()}

    def _mask(self, given: Any) -> Mask:
        if given is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask: Mask = np.asarray(given)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"reset_mask has shape {mask.shape} and dtype {mask.dtype}, allowed: shape "
                f"({self.num_envs},), bool, at least one True"
            )
        return mask

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Advance every copy by one step; shapes as `gymnasium.vector.VectorEnv.step` has them."""
        rewards, info = self._advance(actions)
        self._elapsed += 1
        truncated = self._elapsed >= self.horizon
        info["task"] = self.task.copy()
        observation = self._observe()
        if self._autoreset and truncated.any():
            final = np.full(self.num_envs, None, dtype=object)
            rows = zip(*(value[truncated] for value in observation.values()), strict=True)
            for i, row in zip(np.flatnonzero(truncated), rows, strict=True):
                final[i] = dict(zip(observation, row, strict=True))
            self._elapsed[truncated] = 0
            self._begin(truncated, seeded=False)
            observation = self._observe()
            final_info = {key: value.copy() for key, value in info.items()}
            info |= {"final_obs": final, "_final_obs": truncated.copy()}
            info |= {"final_info": final_info, "_final_info": truncated.copy()}
        return observation, rewards, np.zeros(self.num_envs, dtype=np.bool_), truncated, info

    def state_dict(self) -> dict[str, Any] | None:
        """Where every copy stands, for `load_state_dict` of a world made alike; None if a subclass
        can't say.
        """
        own = self._world_state()
        if own is None:
            return None
        generator = self.np_random.bit_generator.state
        return {
            "task": self.task.copy(),
            "elapsed": self._elapsed.copy(),
            "np_random": generator,
            "own": own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises ValueError if it is of another number of copies.
        """
        if len(state["task"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['task'])} copies; this world has {self.num_envs}"
            )
        self.task, self._elapsed = state["task"].copy(), state["elapsed"].copy()
        self.np_random.bit_generator.state = state["np_random"]
        self._load_world_state(state["own"])

    def _world_state(self) -> dict[str, Any] | None:
        """What a subclass adds to `state_dict`: all that its next step depends on.

        None if it can't say.
        """
        return None

    def _load_world_state(self, own: Mapping[str, Any]) -> None:
        """Take over what `_world_state` gave."""
        raise NotImplementedError(f"{type(self).__name__} gives no state, so it takes none")

    def _begin(self, mask: Mask, seeded: bool) -> None:
        """Start new episodes in the copies of `mask`; `seeded` when `np_random` was just seeded."""
        raise NotImplementedError

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Advance all copies; return rewards (num_envs,) and info arrays of that length."""
        raise NotImplementedError

    def _observe(self) -> Observation:
        """Fresh arrays, one per modality, (num_envs, ...)."""
        raise NotImplementedError


class OneCopyEnv(TaskEnv):
    """A batched world's single environment: one copy of it, so that the physics is written once."""

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
        self.world.task[0] = self.task.id
        self.world._elapsed[0] = 0
        self.world._begin(np.ones(1, dtype=np.bool_), seeded=seed is not None)
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

    def examples(self, task: int | str) -> int | None:
        return self.world.examples(task)

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
