"""Vectors of anybody's world, with the interface of the natively batched ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from everloop.contract import Metric, Task
from everloop.envs.feedback import Feedback, VectorFeedback

STATELESS = OrderEnforcing | PassiveEnvChecker | Feedback


class SyncTaskVectorEnv(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv` of single worlds, with `tasks`, `reward_range` and
    `reference`.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)
        self._task = np.zeros(self.num_envs, dtype=np.int64)
        self.tasks: tuple[Task, ...] = self.envs[0].get_wrapper_attr("tasks")
        self.reward_range: tuple[float, float] = self.envs[0].get_wrapper_attr("reward_range")

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As Gymnasium's; the caller's `options` stay as they are, and info["task"] is about all
        copies, reset or not.
        """
        observation, info = super().reset(
            seed=seed, options=None if options is None else dict(options)
        )
        self._task[info["_task"]] = info["task"][info["_task"]]
        return observation, {
            **info,
            "task": self._task.copy(),
            "_task": np.ones(self.num_envs, dtype=np.bool_),
        }

    def step(self, actions: Any) -> Any:
        """As Gymnasium's, and what the last step of an episode said stands in `info` like that of
        every other step.
        """
        observation, rewards, terminated, truncated, info = super().step(actions)
        for key, values in info.get("final_info", {}).items():
            if not key.startswith("_") and f"_{key}" in info["final_info"]:
                mask = info["final_info"][f"_{key}"]
                info.setdefault(key, np.zeros_like(values))[mask] = values[mask]
                info.setdefault(f"_{key}", np.zeros_like(mask))[mask] = True
        return observation, rewards, terminated, truncated, info

    def reference(self, task: int | str) -> tuple[float, float]:
        known: tuple[float, float] = self.envs[0].get_wrapper_attr("reference")(task)
        return known

    def metric(self, task: int | str) -> Metric:
        metric: Metric = self.envs[0].get_wrapper_attr("metric")(task)
        return metric

    def examples(self, task: int | str) -> int | None:
        count: int | None = self.envs[0].get_wrapper_attr("examples")(task)
        return count

    def state_dict(self) -> dict[str, Any] | None:
        """The states of all copies, for copies that have been reset; None if one gives none."""
        limits, copies = (
            [_steps_of_limits(env) for env in self.envs],
            [env.get_wrapper_attr("state_dict")() for env in self.envs],
        )
        return (
            None
            if None in [*limits, *copies]
            else {"task": self._task.copy(), "copies": copies, "limits": limits}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises ValueError if it is of another number of copies.
        """
        if len(state["copies"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['copies'])} copies; this world has {self.num_envs}"
            )
        self._task = state["task"].copy()
        for env, own, steps in zip(self.envs, state["copies"], state["limits"], strict=True):
            env.get_wrapper_attr("load_state_dict")(own)
            for limit, elapsed in zip(_limits(env), steps, strict=True):
                limit._elapsed_steps = elapsed


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """The wrappers around an environment, from the outermost in."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def _limits(env: gym.Env[Any, Any]) -> list[TimeLimit[Any, Any]]:
    return [layer for layer in _layers(env) if isinstance(layer, TimeLimit)]


def _steps_of_limits(env: gym.Env[Any, Any]) -> list[int | None] | None:
    """The steps that each time limit has counted; None where another wrapper may have a state that
    it doesn't give.
    """
    if not all(isinstance(layer, STATELESS | TimeLimit) for layer in _layers(env)):
        return None
    return [limit._elapsed_steps for limit in _limits(env)]


def make_vec(
    env_id: str, num_envs: int = 1, feedback: bool = False, **parameters: Any
) -> VectorEnv[Any, Any, Any]:
    """`num_envs` copies of the registered world `env_id` under SAME_STEP autoreset.

    A world registered with a `vector_entry_point` is batched natively, any other one runs in
    `SyncTaskVectorEnv`. `feedback` adds the previous action and reward as a modality.

    env_id: as `gym.make` takes it, "module:id" to import the module that registers it.
    Raises ValueError that names an id which is not registered.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        spec = gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        worlds = ", ".join(sorted(name for name in gym.registry if name.startswith("everloop/")))
        raise ValueError(
            f"unknown world {env_id!r}: choose one of {worlds}, or register your own ({error})"
        ) from None
    env: VectorEnv[Any, Any, Any]
    if spec.vector_entry_point is not None:
        env = gym.make_vec(name, num_envs, **parameters)
    else:
        with closing(gym.make(name, **parameters)) as probe:
            if not probe.has_wrapper_attr("tasks"):
                raise ValueError(f"{env_id!r} is no world, allowed: environments with `tasks`")
        env = SyncTaskVectorEnv([lambda: gym.make(name, **parameters) for _ in range(num_envs)])
    if (
        not hasattr(env, "tasks")
        or env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP
    ):
        raise ValueError(
            f"{env_id!r} is no world, allowed: environments with `tasks`, batched ones under "
            "SAME_STEP autoreset"
        )
    return VectorFeedback(env) if feedback else env
