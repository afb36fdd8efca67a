"""Vectors of worlds that step one copy at a time, with the interface of batched worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from importlib import import_module
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from everloop.contract import WORLD, Metric, Task
from everloop.envs.feedback import Feedback, VectorFeedback
from everloop.envs.task import reward_range_of

# wrappers whose state a reset restores, so that a saved state leaves it out
STATELESS = OrderEnforcing | PassiveEnvChecker | Feedback


class OfTasks:
    """What vectors of single-copy worlds add to Gymnasium's: seeds, and the tasks in `info`."""

    num_envs: int
    _task: npt.NDArray[np.int64]

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset as Gymnasium does, except for the seeds and for `info["task"]`.

        The copies' seeds are spawned from `seed`, because Gymnasium's seed + i would give runs of
        neighbouring seeds the same copies. `info["task"]` covers all copies, reset or not.
        """
        if seed is not None and np.ndim(seed) == 0:
            # 31 bits, which every generator accepts
            words = np.random.SeedSequence(int(seed)).generate_state(self.num_envs) >> 1
            seed = [int(word) for word in words]
        # Gymnasium removes the reset mask from the options, which are the caller's own
        own_options = None if options is None else dict(options)
        observation, info = super().reset(seed=seed, options=own_options)  # type: ignore[misc]
        self._task[info["_task"]] = info["task"][info["_task"]]
        every = np.ones(self.num_envs, dtype=np.bool_)
        return observation, {**info, "task": self._task.copy(), "_task": every}

    def step(self, actions: Any) -> Any:
        """Step as Gymnasium does.

        For copies whose episode ended, `info` holds the entries of the episode's last step in place
        of the reset's.
        """
        observation, rewards, terminated, truncated, info = super().step(actions)  # type: ignore[misc]
        _merge(info, info.get("final_info", {}))
        return observation, rewards, terminated, truncated, info


class SyncTaskVectorEnv(OfTasks, SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv` as a world: several copies of one single-copy world.

    The step that ends a copy's episode also resets the copy (SAME_STEP autoreset).

    Args:
        env_fns: Functions that each make one copy.

    Raises:
        ValueError: If the copies are not worlds.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)
        _check_world(self.envs[0])
        self._task = np.zeros(self.num_envs, dtype=np.int64)
        self.tasks: tuple[Task, ...] = self.envs[0].get_wrapper_attr("tasks")
        self.reward_range = reward_range_of(self.envs[0])

    def reference(self, task: int | str) -> tuple[float, float]:
        known: tuple[float, float] = self.envs[0].get_wrapper_attr("reference")(task)
        return known

    def metric(self, task: int | str) -> Metric:
        metric: Metric = self.envs[0].get_wrapper_attr("metric")(task)
        return metric

    def examples(self, task: int | str | Sequence[int]) -> int | None:
        count: int | None = self.envs[0].get_wrapper_attr("examples")(task)
        return count

    def show(self, task: int, rows: Any) -> None:
        """Return None: a wrapper of a copy may show examples differently."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return the states of all copies.

        None if a copy has no state or an unknown wrapper. Every copy must have been reset before.
        """
        copies = [state_of(env) for env in self.envs]
        if None in copies:
            return None
        return {"task": self._task.copy(), "copies": copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If the state has a different number of copies.
        """
        if len(state["copies"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['copies'])} copies; this world has {self.num_envs}"
            )
        self._task = state["task"].copy()
        for env, own in zip(self.envs, state["copies"], strict=True):
            restore(env, own)


def _merge(info: dict[str, Any], last: Mapping[str, Any]) -> None:
    """Replace entries of `info` by those of `last`, for the copies that have them.

    As Gymnasium does, `last` has for each key the entries of all copies, an array or again a dict,
    and under "_key" the mask of the copies that have one.
    """
    for key, values in last.items():
        mask = last.get(f"_{key}")
        if mask is None:
            continue
        if isinstance(values, dict):
            if not isinstance(info.get(key), dict):
                info[key] = {}
            _merge(info[key], values)
        else:
            old = info.get(key)
            rows = mask.reshape(-1, *[1] * (values.ndim - 1))
            known = isinstance(old, np.ndarray) and old.shape == values.shape
            info[key] = np.where(rows, values, old if known else np.zeros_like(values))
        info[f"_{key}"] = mask | info.get(f"_{key}", np.zeros_like(mask))


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Yield the wrappers around an environment, outermost first."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def _limits(env: gym.Env[Any, Any]) -> list[TimeLimit[Any, Any]]:
    return [layer for layer in _layers(env) if isinstance(layer, TimeLimit)]


def _steps_of_limits(env: gym.Env[Any, Any]) -> list[int | None] | None:
    """Return the steps counted by each time limit; None if another wrapper may have a state."""
    if not all(isinstance(layer, STATELESS | TimeLimit) for layer in _layers(env)):
        return None
    return [limit._elapsed_steps for limit in _limits(env)]


def state_of(env: gym.Env[Any, Any]) -> dict[str, Any] | None:
    """Return the state of a single world with its time limits; None if a part has no state."""
    own, limits = env.get_wrapper_attr("state_dict")(), _steps_of_limits(env)
    return None if own is None or limits is None else {"world": own, "limits": limits}


def restore(env: gym.Env[Any, Any], state: Mapping[str, Any]) -> None:
    """Restore what `state_of` returned."""
    env.get_wrapper_attr("load_state_dict")(state["world"])
    for limit, elapsed in zip(_limits(env), state["limits"], strict=True):
        limit._elapsed_steps = elapsed


class _Copy(gym.Wrapper[Any, Any, Any, Any]):
    """A copy in a process of its own, which knows which one it is.

    Args:
        env: The world.
        index: Its position among the copies.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        self.index = index

    def copy_state(self) -> dict[str, Any] | None:
        """Return the state of this copy."""
        return state_of(self.env)

    def load_copy_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore this copy from the states of all."""
        restore(self.env, states[self.index])


def _numbered(make: Callable[[], gym.Env[Any, Any]], index: int) -> gym.Env[Any, Any]:
    return _Copy(make(), index)


class AsyncTaskVectorEnv(OfTasks, AsyncVectorEnv):
    """Gymnasium's `AsyncVectorEnv` as a world: copies of a single-copy world, each in a process.

    It shows the same as `SyncTaskVectorEnv`, bit for bit.

    Args:
        env_fns: Functions that each make one copy. They must be picklable.

    Raises:
        ValueError: If the copies are not worlds.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        self._probe = env_fns[0]()  # answers what is the same for all copies
        _check_world(self._probe)
        super().__init__(
            [partial(_numbered, make, i) for i, make in enumerate(env_fns)],
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self._task = np.zeros(self.num_envs, dtype=np.int64)
        self.tasks: tuple[Task, ...] = self._probe.get_wrapper_attr("tasks")
        self.reward_range = reward_range_of(self._probe)

    def reference(self, task: int | str) -> tuple[float, float]:
        known: tuple[float, float] = self._probe.get_wrapper_attr("reference")(task)
        return known

    def metric(self, task: int | str) -> Metric:
        metric: Metric = self._probe.get_wrapper_attr("metric")(task)
        return metric

    def examples(self, task: int | str | Sequence[int]) -> int | None:
        count: int | None = self._probe.get_wrapper_attr("examples")(task)
        return count

    def show(self, task: int, rows: Any) -> None:
        """Return None: a wrapper of a copy may show examples differently."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return the states of all copies, as `SyncTaskVectorEnv` does."""
        copies = list(self.call("copy_state"))
        return None if None in copies else {"task": self._task.copy(), "copies": copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, also that of a `SyncTaskVectorEnv`.

        Raises:
            ValueError: If the state has a different number of copies.
        """
        if len(state["copies"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['copies'])} copies; this world has {self.num_envs}"
            )
        self._task = state["task"].copy()
        self.call("load_copy_state", state["copies"])

    def close_extras(self, *args: Any, **kwargs: Any) -> None:
        """Close the copies, and the one that answers questions."""
        self._probe.close()
        super().close_extras(*args, **kwargs)


def _check_world(env: gym.Env[Any, Any]) -> None:
    """Raise ValueError if a single environment is no world."""
    if missing := [name for name in WORLD if not env.has_wrapper_attr(name)]:
        raise ValueError(
            f"{env} is not a world: it has no {', '.join(missing)}; derive it from "
            "everloop.envs.TaskEnv"
        )


def _registered(env_id: str) -> EnvSpec:
    """Return the spec of a registered world, after importing the module in its ID, if any.

    Raises:
        ValueError: If there is no such module or no such world. Errors inside the module remain.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        return gym.spec(name)
    except (gym.error.Error, ModuleNotFoundError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and not f"{module}.".startswith(f"{missing}."):
            raise  # the module is there, but imports another one that is not
        worlds = ", ".join(sorted(name for name in gym.registry if name.startswith("everloop/")))
        raise ValueError(
            f"unknown world {env_id!r}: choose one of {worlds}, or register your own ({error})"
        ) from None


def make_vec(
    env_id: str,
    num_envs: int = 1,
    feedback: bool = False,
    vectorization: Literal["sync", "async"] = "sync",
    **parameters: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make `num_envs` copies of a registered world under SAME_STEP autoreset.

    A world registered with a `vector_entry_point` is batched natively. The copies of any other one
    step one after the other, or in processes of their own.

    Args:
        env_id: ID as `gym.make` takes it; "module:id" imports the module that registers it.
        num_envs: Number of copies, 1 or more.
        feedback: Whether to add the previous action and reward as the modality "feedback".
        vectorization: "sync" for copies in this process, "async" for a process for each copy, which
            pays off if a step takes longer than about a millisecond. A world that is batched
            natively needs neither, and allows only "sync".
        **parameters: Parameters of the world.

    Raises:
        ValueError: If the ID is not registered, or if the environment has no `tasks` or does not
            use SAME_STEP autoreset.
    """
    spec = _registered(env_id)
    name = spec.id
    env: VectorEnv[Any, Any, Any]
    if spec.vector_entry_point is not None:
        if vectorization == "async":
            raise ValueError(f"{env_id!r} is batched natively; leave out vectorization async")
        env = gym.make_vec(name, num_envs, **parameters)
    else:
        with closing(gym.make(name, **parameters)) as probe:
            if not probe.has_wrapper_attr("tasks"):
                raise ValueError(
                    f"{env_id!r} is not a world: it has no `tasks`; derive it from "
                    "everloop.envs.TaskEnv"
                )
        copies = [partial(gym.make, name, **parameters) for _ in range(num_envs)]
        env = AsyncTaskVectorEnv(copies) if vectorization == "async" else SyncTaskVectorEnv(copies)
    if not hasattr(env, "tasks"):
        raise ValueError(
            f"{env_id!r} is not a world: it has no `tasks`; derive it from "
            "everloop.envs.TaskVectorEnv"
        )
    if (mode := env.metadata.get("autoreset_mode")) is not AutoresetMode.SAME_STEP:
        raise ValueError(
            f"autoreset_mode of {env_id!r} is {mode}; set it to AutoresetMode.SAME_STEP"
        )
    return VectorFeedback(env) if feedback else env
