"""State dicts of objects that declare their state by the names of attributes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

ARRAY = "array of "
"""Beginning of the only key of a dict that stands for an array; its dtype follows."""

RAW = np.dtype("V2")  # holds bfloat16, which numpy lacks


class Stateful:
    """Base class that saves and restores the attributes named in `state`.

    Names are collected from the class and all its bases. A state holds copies, and only tensors,
    arrays and plain Python. An attribute may be one of these, a generator of random numbers, an
    object with a `state_dict`, or a container. A container holds no generators and no objects with
    a `state_dict`, because these are restored in place.
    """

    state: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the attributes by name."""
        return packed(self, declared(type(self)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the attributes from a `state_dict`.

        Raises:
            ValueError: If a name is missing or unknown.
        """
        unpack_into(self, state)
        self._restored()

    def _restored(self) -> None:
        """Called after loading, to recompute what follows from the state."""


def declared(cls: type[Any]) -> list[str]:
    """Return the names in `state` of a class and its bases, those of the bases first."""
    return [name for base in reversed(cls.__mro__) for name in vars(base).get("state", ())]


def packed(owner: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return copies of the attributes of `owner` with these names."""
    return {name: pack(getattr(owner, name)) for name in names}


def restore(owner: Any, attributes: Mapping[str, Any]) -> None:
    """Set attributes of `owner` to copies of what `packed` gave."""
    for name, value in attributes.items():
        setattr(owner, name, pack(value))


def unpack_into(owner: Any, state: Mapping[str, Any]) -> None:
    """Restore the declared attributes of `owner` from `state`.

    Raises:
        ValueError: If a name is missing or unknown. Nothing is changed then.
    """
    names = declared(type(owner))
    if set(names) != set(state):
        raise ValueError(
            f"the state of {type(owner).__name__} holds {', '.join(state) or 'nothing'}; it needs "
            f"{', '.join(names)}"
        )
    for name in names:
        setattr(owner, name, _unpacked(getattr(owner, name), state[name]))


def by_name(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return objects by their names. Repeated names get a number, as in "ewc-2"."""
    found: dict[str, T] = {}
    counts: Counter[str] = Counter()
    for name, value in named:
        counts[name] += 1
        found[name if counts[name] == 1 else f"{name}-{counts[name]}"] = value
    return found


def generators() -> dict[str, Any]:
    """Return the state of the global generators of random numbers.

    These are Python's, numpy's and torch's, and torch's for each GPU.
    """
    name, *numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [name, *pack(numpy_state)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def load_generators(state: Mapping[str, Any]) -> None:
    """Restore the global generators from what `generators` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def pack(value: Any) -> Any:
    """Return a copy of `value` that consists of tensors, arrays and plain Python."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return pack(value.bit_generator.state)
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if isinstance(value, Mapping):
        return {key: pack(part) for key, part in value.items()}
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [pack(part) for part in value]
    return value


def without_arrays(value: Any) -> Any:
    """Return a packed state with tensors in place of arrays, sharing their memory.

    `torch.load(..., weights_only=True)` reads it, unlike one with arrays.
    """
    if isinstance(value, np.ndarray):
        tagged = value.view(np.int16) if value.dtype == RAW else value
        return {ARRAY + str(value.dtype): torch.from_numpy(tagged)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: without_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_arrays(part) for part in value]
    return value


def with_arrays(value: Any) -> Any:
    """Return the state from which `without_arrays` made `value`."""
    if isinstance(value, Mapping):
        if len(value) == 1 and str(key := next(iter(value))).startswith(ARRAY):
            return value[key].cpu().numpy().view(key.removeprefix(ARRAY))
        return {key: with_arrays(part) for key, part in value.items()}
    return [with_arrays(part) for part in value] if isinstance(value, list) else value


def move_state(owner: Any, device: torch.device) -> None:
    """Move the tensors in the declared attributes of `owner` and of its parts to `device`."""
    for name in declared(type(owner)):
        value = getattr(owner, name)
        if isinstance(value, Stateful):
            move_state(value, device)
        elif isinstance(value, Tensor | Mapping | list | tuple):
            setattr(owner, name, _moved(value, device))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(part, device) for part in value)
    return value


def _unpacked(now: Any, packed: Any) -> Any:
    """Return the attribute `now` with the state `packed`.

    Generators and objects with a `state_dict` are changed in place; anything else is a copy.
    """
    if isinstance(now, torch.Generator):
        now.set_state(packed.cpu())
        return now
    if isinstance(now, np.random.Generator):
        now.bit_generator.state = packed
        return now
    if hasattr(now, "load_state_dict"):
        now.load_state_dict(packed)
        return now
    copied = pack(packed)
    return type(now)(copied) if isinstance(now, set | tuple) else copied
