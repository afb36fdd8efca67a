"""A memory of fixed size that is, at any time, a uniform sample of everything it was offered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Items = Mapping[str, npt.NDArray[Any]]


class Reservoir:
    """Reservoir sampling (Vitter 1985, algorithm R): offer n is kept with probability capacity / n.

    Arrays are allocated once, at the first write, in the dtype they come in: uint8 images stay uint8.
    Raises ValueError for a capacity below 1.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, allowed: 1 or more")
        self.capacity, self.offered = capacity, 0
        self.items: dict[str, npt.NDArray[Any]] = {}
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.offered, self.capacity)

    def reserve(self, offers: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count `offers` new examples: (which of them to keep, the rows to write them to), no row twice."""
        index = self.offered + np.arange(offers)
        slot = np.where(index < self.capacity, index, self.rng.integers(0, index + 1))
        kept = np.flatnonzero(slot < self.capacity)
        # a later offer overwrites an earlier one's row: keep each row's last
        rows, last = np.unique(slot[kept][::-1], return_index=True)
        self.offered += offers
        return kept[::-1][last], rows

    def write(self, rows: npt.NDArray[np.int64], items: Items) -> None:
        """Write one item to each row; its arrays have the example first."""
        for name, value in items.items():
            if name not in self.items:
                self.items[name] = np.zeros((self.capacity, *value.shape[1:]), value.dtype)
            self.items[name][rows] = value

    def read(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Copies of the items in `rows`."""
        return {name: value[rows] for name, value in self.items.items()}

    def draw(self, count: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`count` of `rows`, uniformly and with replacement."""
        return rows[self.rng.integers(0, len(rows), count)]

    def state_dict(self) -> dict[str, Any]:
        """Contents and random state, as copies."""
        return {
            "capacity": self.capacity,
            "offered": self.offered,
            "items": {name: value.copy() for name, value in self.items.items()},
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of a memory with another capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"the state's capacity is {state['capacity']}, allowed: {self.capacity}")
        self.offered = state["offered"]
        self.items = {name: value.copy() for name, value in state["items"].items()}
        self.rng.bit_generator.state = state["rng"]
