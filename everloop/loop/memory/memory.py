"""What every memory of past examples has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from everloop.loop.memory.store import Items, Rows, Store

Kept = tuple[Rows, Rows]
TRIES = 8  # draws of twice as many as are wanted, before all rows are looked at
SMALL_ID = 4096


class Memory(ABC):
    """`capacity` stored examples, and a rule that says which of those offered they are.

    group_by: which of a batch's fields the rule needs to know of each example, if any.
    score_by: which number the rule needs for each example: the entropy of the network's output for
    it, or its loss. Raises ValueError for a capacity below 1.
    """

    group_by: Literal["target", "task"] | None = None
    score_by: Literal["entropy", "loss"] | None = None

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.store = Store(capacity)
        self.capacity, self.offered, self.size = capacity, 0, 0
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.size

    @property
    def items(self) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays; rows from `len(self)` on hold nothing yet."""
        return self.store.items

    @abstractmethod
    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        """Count `offers` new examples: (which of them to keep, the rows to write them to), no row
        twice.

        groups, scores: (offers,), where `group_by` and `score_by` ask for them.
        """

    def write(self, rows: Rows, items: Items) -> None:
        """Write one item to each row; its arrays have the example first."""
        self.store.write(rows, items)

    def read(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Copies of the items in `rows`."""
        return self.store.read(rows)

    def draw(self, count: int, tasks: Rows | None = None) -> Rows:
        """`count` rows, uniformly and with replacement; of these `tasks` if they are given.

        Empty where there are none.
        """
        if tasks is None or not self.size:
            return self.rng.integers(0, self.size, count) if self.size else np.zeros(0, np.int64)
        if not len(tasks):
            return np.zeros(0, np.int64)
        # rejection: what it costs does not grow with the memory, and what is left is as uniform as
        # what was drawn
        task, found = self.items["task"], np.zeros(0, np.int64)
        for _ in range(TRIES):
            rows = self.rng.integers(0, self.size, 2 * count)
            found = np.append(found, rows[_among(task[rows], tasks)])
            if len(found) >= count:
                return found[:count]
        rows = self.rows_of(tasks)
        return rows[self.rng.integers(0, len(rows), count)] if len(rows) else rows

    def draw_distinct(self, count: int) -> Rows:
        """`count` different rows, all sets of so many alike; all rows where there are no more."""
        return self.rng.choice(self.size, min(count, self.size), replace=False)

    def rows_of(self, tasks: Rows) -> Rows:
        """All rows that hold examples of `tasks`."""
        if not self.size:
            return np.zeros(0, np.int64)
        return np.flatnonzero(np.isin(self.items["task"][: self.size], tasks))

    def balance(self) -> dict[int, float]:
        """The share of each class among what is stored; empty where targets are not classes."""
        target = self.items.get("target")
        if target is None or target.dtype.kind != "i" or not self.size:
            return {}
        stored = target[: self.size]
        labels, counts = np.unique(
            stored[stored >= 0], return_counts=True
        )  # of tags, those below 0 are none
        return {
            int(label): float(count / counts.sum())
            for label, count in zip(labels, counts, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Contents and random state, as copies."""
        return {
            "store": self.store.state_dict(),
            "offered": self.offered,
            "size": self.size,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of a memory with another capacity."""
        self.store.load_state_dict(state["store"])
        self.offered, self.size = state["offered"], state["size"]
        self.rng.bit_generator.state = state["rng"]


def _among(ids: Rows, wanted: Rows) -> npt.NDArray[np.bool_]:
    """Which `ids` are `wanted`, as `np.isin` finds in ten times the time."""
    known = wanted.tolist()  # of which min and max are found faster
    if min(known) < 0 or max(known) >= SMALL_ID:
        return np.isin(ids, wanted)
    table = np.zeros(
        max(known) + 3, np.bool_
    )  # its first and last entries stand for all ids below 0 and beyond
    table[wanted + 1] = True
    return table.take(ids + 1, mode="clip")
