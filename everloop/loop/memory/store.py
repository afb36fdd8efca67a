"""Rows of arrays, allocated once."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Items = Mapping[str, npt.NDArray[Any]]

IN_MEMORY = 4 * 2**30
"""Bytes above which an array is a file, read and written through a memory map.

It is gone when the process ends.
"""


class Store:
    """`capacity` items of the same form; reading and writing cost what the rows at hand cost,
    however many there are.

    Arrays are allocated at the first write, in the dtype they come in: uint8 images stay uint8. One
    that would take more than `IN_MEMORY` bytes lies on disk. Raises ValueError for a capacity below
    1, and for examples of another shape than the first.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, allowed: 1 or more")
        self.capacity = capacity
        self.items: dict[str, npt.NDArray[Any]] = {}

    def write(self, rows: Rows, items: Items) -> None:
        """Write one item to each row; its arrays have the example first."""
        for name, value in items.items():
            if name not in self.items:
                self.items[name] = _allocate((self.capacity, *value.shape[1:]), value.dtype)
            like = self.items[name].shape[1:]
            if value.shape[1:] != like:
                raise ValueError(
                    f"{name} has the shape {value.shape[1:]}, allowed: {like}, as in the first "
                    "example stored"
                )
            self.items[name][rows] = value

    def read(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Copies of the items in `rows`."""
        # take copies whole rows, several times faster than an index does
        return {name: value.take(rows, axis=0) for name, value in self.items.items()}

    def state_dict(self) -> dict[str, Any]:
        """Contents, as copies."""
        return {
            "capacity": self.capacity,
            "items": {name: np.array(value) for name, value in self.items.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of a memory with another capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the state's capacity is {state['capacity']}, allowed: {self.capacity}"
            )
        self.items = {}
        if state["items"]:
            self.write(np.arange(self.capacity), state["items"])


def _allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="everloop-") as file:  # the map keeps what is in it
        return np.memmap(file, dtype, "w+", shape=shape)
