"""Arrays with one row for each example, allocated once."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Row numbers of a store, (n,)."""

Items = Mapping[str, npt.NDArray[Any]]
"""Examples: the array of each field by name, (n, ...)."""

IN_MEMORY = 4 * 2**30
"""Bytes above which an array is a temporary file, accessed through a memory map.

The file disappears when the process ends.
"""


class Store:
    """Room for `capacity` examples of the same form.

    The cost of reading and writing depends on the number of rows accessed, not on the capacity.
    Arrays are allocated at the first write and keep the dtype of what is written: uint8 images
    stay uint8. An array of more than `IN_MEMORY` bytes lies on disk.

    Args:
        capacity: Number of rows, 1 or more.

    Attributes:
        items: The array of each field by name, (capacity, ...). Empty before the first write.

    Raises:
        ValueError: If the capacity is below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be 1 or more")
        self.capacity = capacity
        self.items: dict[str, npt.NDArray[Any]] = {}

    def write(self, rows: Rows, items: Items) -> None:
        """Write one example to each row.

        Args:
            rows: Row numbers, (n,).
            items: The examples' fields, each (n, ...).

        Examples may have different lengths (the axes after the first two) if one of the fields is
        a mask of the observations, `obs.<name with "mask">`. Then all are padded to the longest:
        with 0, tags with -100, and outputs with nan.

        Raises:
            ValueError: If a field has another shape than in the first example stored.
        """
        masked = any(name.startswith("obs.") and "mask" in name for name in items)
        for name, value in items.items():
            if masked and name in self.items:
                value = self._made_equal(name, value)
            if name not in self.items:
                self.items[name] = _allocate((self.capacity, *value.shape[1:]), value.dtype)
            like = self.items[name].shape[1:]
            if value.shape[1:] != like:
                raise ValueError(
                    f"{name} has the shape {value.shape[1:]}; it must be {like}, as in the first "
                    "example stored; for examples of different lengths give a mask among the "
                    "inputs, such as attention_mask"
                )
            self.items[name][rows] = value

    def _made_equal(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return `value` padded to the stored field, after padding this one to `value`."""
        stored = self.items[name]
        if stored.ndim != value.ndim or stored.shape[1:2] != value.shape[1:2]:
            return value
        longest = np.maximum(stored.shape[1:], value.shape[1:])
        if (longest > stored.shape[1:]).any():
            self.items[name] = _padded(stored, longest, name)
        return _padded(value, longest, name)

    def read(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the examples in `rows`."""
        # `take` copies whole rows, several times faster than indexing does.
        return {name: value.take(rows, axis=0) for name, value in self.items.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the contents."""
        return {
            "capacity": self.capacity,
            "items": {name: np.array(value) for name, value in self.items.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the contents.

        Raises:
            ValueError: If the state belongs to a store with another capacity.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the state has capacity {state['capacity']}; load it into a memory of that "
                f"capacity, not {self.capacity}"
            )
        self.items = {}
        if state["items"]:
            self.write(np.arange(self.capacity), state["items"])


def padding(name: str, integer: bool) -> float:
    """Return the value that fills up a field of examples that are shorter than others."""
    if name == "output":
        return np.nan
    return -100 if name == "target" and integer else 0


def _padded(value: npt.NDArray[Any], shape: npt.NDArray[np.int64], name: str) -> npt.NDArray[Any]:
    """Return `value` (n, ...) as (n, *shape), filled up at the end of each axis."""
    if tuple(shape) == value.shape[1:]:
        return value
    wide = _allocate((len(value), *shape), value.dtype)
    wide[...] = padding(name, value.dtype.kind == "i")
    wide[tuple(slice(0, n) for n in value.shape)] = value
    return wide


def _allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a new array, on disk if it is large."""
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.zeros(shape, dtype)
    # The memory map keeps the contents after the file is closed.
    with tempfile.TemporaryFile(prefix="everloop-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)
