"""The state of Stable-Baselines3's callbacks, which have no `state_dict` of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from everloop.loop.state import pack

GIVEN = ("model", "locals", "globals", "parent")
"""Attributes that the algorithm gives to a callback anew."""


def states_of(callback: BaseCallback) -> list[dict[str, Any]]:
    """Return the plain attributes of a callback and of the callbacks inside it.

    These are numbers, texts and arrays, and lists and dicts of them, such as the calls so far and
    the best mean reward of an `EvalCallback`.
    """
    return [
        {
            name: pack(value)
            for name, value in vars(each).items()
            if name not in GIVEN and _is_plain(value)
        }
        for each in _walk(callback)
    ]


def load_states(callback: BaseCallback, states: Sequence[Mapping[str, Any]]) -> None:
    """Restore what `states_of` returned.

    Raises:
        ValueError: If there is another number of callbacks.
    """
    callbacks = list(_walk(callback))
    if len(callbacks) != len(states):
        raise ValueError(
            f"the state belongs to {len(states)} callbacks of Stable-Baselines3; here are "
            f"{len(callbacks)}"
        )
    for each, state in zip(callbacks, states, strict=True):
        vars(each).update(pack(state))


def _walk(callback: BaseCallback) -> Iterator[BaseCallback]:
    """Yield a callback and those inside it."""
    yield callback
    inside = [
        getattr(callback, name, None) for name in ("callback", "callback_on_new_best")
    ] + list(getattr(callback, "callbacks", []))
    for each in inside:
        if isinstance(each, BaseCallback):
            yield from _walk(each)


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text, an array, or a list or dict of them."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return value is None or isinstance(value, bool | int | float | str | np.generic)
