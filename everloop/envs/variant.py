"""One environment in the variants that tasks play: its parameters, and their drift."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

SETTABLE = ("number", "bool", "str")
"""Kinds of attributes that an error suggests."""
DRIFT = ("from", "to", "steps")
"""Keys of a parameter that drifts within a task."""


def _cart_pole(env: Any) -> None:
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length


DERIVED: dict[str, Callable[[Any], None]] = {"CartPoleEnv": _cart_pole}
"""Class of an environment -> function that computes anew what follows from its attributes."""


def make(
    env_id: str,
    arguments: Mapping[str, Any],
    wrappers: Sequence[Any],
    max_episode_steps: int | None,
    render_mode: str | None,
) -> gym.Env[Any, Any]:
    """Make a registered environment with wrappers, the first one innermost.

    Args:
        env_id: ID as `gym.make` takes it; "module:id" imports the module that registers it.
        arguments: Arguments of its constructor.
        wrappers: Functions from an environment to a wrapped one, or "package.module:Name".
        max_episode_steps: Steps after which an episode is truncated; None for the registered limit.
        render_mode: As in `gym.make`.

    Raises:
        ValueError: In one line, if the environment or a wrapper can't be made.
    """
    given = dict(arguments) if render_mode is None else {**arguments, "render_mode": render_mode}
    try:
        env = gym.make(
            env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **given
        )
    except gym.error.UnregisteredEnv as error:
        close = difflib.get_close_matches(env_id, list(gym.registry), 1)
        hint = f"did you mean {close[0]}?" if close else "import the module that registers it"
        raise ValueError(f"unknown environment {env_id!r}: {hint} ({error})") from None
    except Exception as error:  # a constructor can raise anything
        raise ValueError(f"{env_id} can't be made: {type(error).__name__}: {error}") from error
    for wrapper in wrappers:
        env = (find(wrapper) if isinstance(wrapper, str) else wrapper)(env)
    return env


def find(path: str) -> Any:
    """Return the object at "package.module:Name".

    Raises:
        ValueError: If there is none.
    """
    module, colon, name = path.partition(":")
    try:
        return getattr(import_module(module), name) if colon else _missing(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"wrapper {path!r} can't be imported: {error}") from None


def _missing(path: str) -> Any:
    raise ValueError(f"wrapper is {path!r}; write it as package.module:Name")


def constructor_arguments(env_id: str) -> set[str]:
    """Return the names of the arguments that an environment's constructor takes."""
    try:
        spec = gym.spec(env_id)
        entry = spec.entry_point
        made = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    except (gym.error.Error, ImportError, AttributeError):
        return set()  # `make` says what is wrong
    assert made is not None, "a registered environment has an entry point"
    known = inspect.signature(made).parameters.values()
    return {p.name for p in known if p.kind is not p.VAR_KEYWORD} | set(spec.kwargs)


class Parameters:
    """Attributes of an environment that tasks set, such as "gravity" or "model.opt.timestep".

    Args:
        env: The environment, wrapped or not; the attributes are those of `env.unwrapped`.

    Raises:
        ValueError: From `check`, if there is no such attribute, or its value has another kind.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env: Any = env.unwrapped
        self._base: dict[str, Any] = {}

    def check(self, name: str, value: Any) -> None:
        """Check that the attribute exists and can take the value, and note its present one."""
        kind = type(self.env).__name__
        try:
            now = self._get(name)
        except AttributeError:
            known = [
                key
                for key in dir(self.env)
                if not key.startswith("_") and _kind(getattr(self.env, key, None)) in SETTABLE
            ]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known[:12])}"
            raise ValueError(
                f"{kind} has neither an argument nor an attribute {name!r}; {hint}"
            ) from None
        for one in (value["from"], value["to"]) if is_drift(value) else (value,):
            if _kind(one) != _kind(now):
                raise ValueError(
                    f"{name} of {kind} is {now!r}, which can't be set to {one!r}; give a value of "
                    "the same kind"
                )
        self._base.setdefault(name, now)

    def set(self, values: Mapping[str, Any], step: int) -> None:
        """Set the attributes of a task, and those of other tasks back to what they were.

        Args:
            values: Attribute -> value, or {"from": a, "to": b, "steps": n}, which goes from a to b
                in n steps of the task.
            step: Steps of the task so far.
        """
        for name, base in self._base.items():
            value = values.get(name, base)
            self._put(name, drifted(value, step) if is_drift(value) else value, base)
        derive = DERIVED.get(type(self.env).__name__)
        if derive is not None and self._base:
            derive(self.env)

    def _get(self, name: str) -> Any:
        return reduce(getattr, name.split("."), self.env)

    def _put(self, name: str, value: Any, base: Any) -> None:
        *path, last = name.split(".")
        owner = reduce(getattr, path, self.env)
        if isinstance(base, np.ndarray):
            value = np.broadcast_to(np.asarray(value, dtype=base.dtype), base.shape).copy()
        setattr(owner, last, value)


def without_effect(
    env: gym.Env[Any, Any], parameters: Parameters, values: Mapping[str, Any], steps: int
) -> bool:
    """Return whether attributes make no difference in so many steps of the same random actions."""

    def played(own: Mapping[str, Any]) -> list[Any]:
        parameters.set(own, 0)
        env.action_space.seed(0)
        seen: list[Any] = [env.reset(seed=0)[0]]
        for _ in range(steps):
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            seen += [observation, float(reward), terminated, truncated]
            if terminated or truncated:
                seen.append(env.reset()[0])
        return seen

    plain, changed = played({}), played(values)
    return len(plain) == len(changed) and all(map(data_equivalence, plain, changed))


def is_drift(value: Any) -> bool:
    """Return whether a parameter drifts: it is {"from": a, "to": b, "steps": n}."""
    return isinstance(value, Mapping) and set(value) == set(DRIFT)


def drifted(value: Mapping[str, Any], step: int) -> Any:
    """Return a drifting parameter after so many steps of its task."""
    share = min(1.0, step / value["steps"])
    return value["from"] + share * (value["to"] - value["from"])


def _kind(value: Any) -> str:
    """Return what kind of value an attribute holds: numbers are all alike."""
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | float | np.number | np.ndarray | list | tuple):
        return "number"
    return type(value).__name__
