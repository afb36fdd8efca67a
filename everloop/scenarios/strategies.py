"""Strategies by name: find them, check them, and make them with complete settings."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from everloop.loop import PRETRAINING, STRATEGIES, Pretraining, Strategy
from everloop.scenarios.names import find_object, from_registry, is_path

PLAIN, JOINT = "none", "joint"
Method = Strategy | Pretraining


def known_methods() -> dict[str, type[Method]]:
    """Return what a list of strategies may name: strategies, and pre-training before the run."""
    return {**STRATEGIES, **PRETRAINING}


def strategy_key(name: str) -> str:
    """Return the name used in settings, titles and folders: a path is reduced to its class."""
    return name.rpartition(":")[2] if is_path(name) else name


def is_strategy(name: str) -> bool:
    """Return True for a registered name, "none", "joint", or any path "package.module:Class"."""
    return name in (PLAIN, JOINT) or name in known_methods() or is_path(name)


def find_strategy(name: str) -> type[Method]:
    """Return the strategy class that is registered as `name`, or at "package.module:Class".

    Raises:
        ValueError: If there is none, or the class has no hook or a misspelled one.
    """
    if not is_path(name):
        found: type[Method] = from_registry(
            "strategy",
            name,
            {PLAIN: None, JOINT: None, **known_methods()},
            ", or package.module:Class",
        )
        return found
    cls = find_object(name)
    if not (inspect.isclass(cls) and issubclass(cls, Strategy)):
        raise ValueError(
            f"strategy {name!r} is {cls!r}; it must be a subclass of everloop.loop.Strategy"
        )
    _check_hooks(cls)
    return cls


def _check_hooks(cls: type[Strategy]) -> None:
    """Raise ValueError if a user's class overrides no hook, or seems to misspell one."""
    hooks = [
        name
        for name, value in vars(Strategy).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]
    own = [
        base
        for base in cls.__mro__
        if issubclass(base, Strategy) and not base.__module__.startswith("everloop.")
    ]
    for base in own:
        for name, value in vars(base).items():
            near = difflib.get_close_matches(name, hooks, n=1, cutoff=0.85)
            if (
                inspect.isfunction(value)
                and not name.startswith("_")
                and name not in hooks
                and near
            ):
                raise ValueError(
                    f"{base.__name__} has a method {name!r}, which is no hook. "
                    f"Did you mean {near[0]!r}?"
                )
    if all(getattr(cls, name) is getattr(Strategy, name) for name in hooks):
        raise ValueError(
            f"{cls.__name__} overrides no hook of Strategy; define one of {', '.join(hooks)}"
        )


def make_strategy(name: str, settings: Mapping[str, Any]) -> Method:
    """Return a new strategy called `name` with these settings.

    Raises:
        ValueError: If a setting is out of range; the message names the strategy.
    """
    try:
        return find_strategy(name)(**settings)
    except (ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{strategy_key(name)}: {error}") from None


def complete_settings(
    strategy: type[Method], given: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return all constructor arguments of `strategy`: the given ones and defaults.

    Args:
        strategy: The class.
        given: Arguments by name; they override the defaults.
        seed: The run's seed, the default of a parameter called `seed`.

    Raises:
        ValueError: If the class has no such parameter.
    """
    parameters = signature(strategy).parameters
    for name in given:
        if name not in parameters:
            raise ValueError(
                f"{strategy.__name__} has no setting {name!r}; it has {', '.join(parameters)}"
            )
    bound = signature(strategy).bind(
        **({"seed": seed} if "seed" in parameters else {}) | dict(given)
    )
    bound.apply_defaults()
    return dict(bound.arguments)


def check_strategies(given: str | Sequence[str]) -> list[str]:
    """Return the names in `given`, a list or comma-separated text, after checking them.

    Raises:
        ValueError: If a name is unknown or repeated, or "none" or "joint" has company.
        TypeError: If a strategy is given as an object or a class.
    """
    if isinstance(given, Method) or inspect.isclass(given):
        raise TypeError(_by_name(given))
    names = (
        [part.strip() for part in given.split(",") if part.strip()]
        if isinstance(given, str)
        else list(given)
    )
    for name in names:
        if not isinstance(name, str):
            raise TypeError(_by_name(name))
        parts = re.split(r"[+\s]+", name)
        if len(parts) > 1 and all(map(is_strategy, parts)):
            raise ValueError(f"unknown strategy {name!r}. Did you mean {','.join(parts)!r}?")
    if not names:
        raise ValueError(
            f"no strategy is named; choose from {', '.join([PLAIN, JOINT, *known_methods()])}"
        )
    keys = [strategy_key(name) for name in names]
    for name, key in zip(names, keys, strict=True):
        if name in (PLAIN, JOINT):
            if len(names) > 1:
                raise ValueError(
                    f"strategy {name!r} can't be combined with others; "
                    f"name it alone instead of {','.join(names)}"
                )
            continue
        find_strategy(name)
        if keys.count(key) > 1:
            raise ValueError(f"strategy {key!r} is named twice; name it once")
        if is_path(name) and key in known_methods():
            raise ValueError(
                f"strategy {name!r} has the name of a built-in one, {key!r}; rename the class"
            )
    return names


def _by_name(strategy: Any) -> str:
    """Return what to write instead of a strategy that is given as an object or a class."""
    cls = strategy if inspect.isclass(strategy) else type(strategy)
    if not issubclass(cls, Method):
        return f"strategies contain {strategy!r}; name them as text, such as 'ewc,replay'"
    name = next(
        (name for name, known in known_methods().items() if known is cls),
        f"{cls.__module__}:{cls.__qualname__}",
    )
    return (
        f"strategies contain {cls.__name__} itself; write its name {name!r} instead, and its "
        f"arguments as settings={{{strategy_key(name)!r}: {{...}}}}"
    )
