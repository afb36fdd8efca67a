"""The base class of replay memories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from everloop.loop.memory.store import Items, Rows, Store

Kept = tuple[Rows, Rows]
"""The offers that are kept, and the row of each, both (n,)."""

TRIES = 8
"""Attempts of rejection sampling before all rows are searched. Each draws twice what is needed."""

SMALL_ID = 4096
"""Task ids below this are looked up in a table."""


class Memory(ABC):
    """A replay memory: stored examples, and a rule for which offered examples to keep.

    Args:
        capacity: Number of examples that can be stored, 1 or more.
        seed: Seed of the memory's own generator of random numbers.

    Attributes:
        group_by: The field of a batch that the rule needs for each example, or None.
        score_by: The score that the rule needs for each example, or None: the entropy of the
            network's output or its loss.
        offered: Number of examples offered so far.

    Raises:
        ValueError: If the capacity is below 1.
    """

    group_by: Literal["target", "task"] | None = None
    score_by: Literal["entropy", "loss"] | None = None

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.store = Store(capacity)
        self.capacity, self.offered, self.size = capacity, 0, 0
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the number of stored examples."""
        return self.size

    @property
    def items(self) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays, (capacity, ...). Rows from `len(self)` on are empty."""
        return self.store.items

    @abstractmethod
    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        """Offer new examples, and decide which of them to keep and where.

        Args:
            offers: Number of examples offered, 0 or more.
            groups: The group of each example, (offers,), if `group_by` asks for it.
            scores: The score of each example, (offers,), if `score_by` asks for it.

        Returns:
            The indices of the offers to keep, and the rows to write them to. No row occurs twice.
        """

    def write(self, rows: Rows, items: Items) -> None:
        """Write one example to each row.

        Args:
            rows: Row numbers, (n,).
            items: The examples' fields, each (n, ...).
        """
        self.store.write(rows, items)

    def read(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the examples in `rows`."""
        return self.store.read(rows)

    def draw(self, count: int, tasks: Rows | None = None) -> Rows:
        """Draw rows uniformly and with replacement.

        Args:
            count: Number of rows, 0 or more.
            tasks: Ids of the tasks to draw from; all stored examples if None.

        Returns:
            Row numbers, (count,). Empty if there are no such examples.
        """
        if tasks is None or not self.size:
            return self.rng.integers(0, self.size, count) if self.size else np.zeros(0, np.int64)
        if not len(tasks):
            return np.zeros(0, np.int64)
        # The cost of rejection sampling does not grow with the memory, and what it accepts is as
        # uniform as what it draws.
        task, found = self.items["task"], np.zeros(0, np.int64)
        for _ in range(TRIES):
            rows = self.rng.integers(0, self.size, 2 * count)
            found = np.append(found, rows[_among(task[rows], tasks)])
            if len(found) >= count:
                return found[:count]
        rows = self.rows_of(tasks)
        return rows[self.rng.integers(0, len(rows), count)] if len(rows) else rows

    def draw_distinct(self, count: int) -> Rows:
        """Draw `count` different rows uniformly; all rows if there are no more than that."""
        return self.rng.choice(self.size, min(count, self.size), replace=False)

    def rows_of(self, tasks: Rows) -> Rows:
        """Return all rows that hold examples of `tasks`."""
        if not self.size:
            return np.zeros(0, np.int64)
        return np.flatnonzero(np.isin(self.items["task"][: self.size], tasks))

    def balance(self) -> dict[int, float]:
        """Return the share of each class among the stored examples, from 0 to 1.

        Empty if targets are not classes. Tokens without a tag do not count.
        """
        target = self.items.get("target")
        if target is None or target.dtype.kind != "i" or not self.size:
            return {}
        stored = target[: self.size]
        labels, counts = np.unique(stored[stored >= 0], return_counts=True)
        return {
            int(label): float(count / counts.sum())
            for label, count in zip(labels, counts, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the contents and of the generator's state."""
        return {
            "store": self.store.state_dict(),
            "offered": self.offered,
            "size": self.size,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the contents and the generator.

        Raises:
            ValueError: If the state belongs to a memory with another capacity.
        """
        self.store.load_state_dict(state["store"])
        self.offered, self.size = state["offered"], state["size"]
        self.rng.bit_generator.state = state["rng"]


def _among(ids: Rows, wanted: Rows) -> npt.NDArray[np.bool_]:
    """Return `np.isin(ids, wanted)` in a tenth of the time."""
    known = wanted.tolist()  # min and max of a short list are faster than of an array
    if min(known) < 0 or max(known) >= SMALL_ID:
        return np.isin(ids, wanted)
    # The first entry stands for all ids below 0, the last for all ids above those in the table.
    table = np.zeros(max(known) + 3, np.bool_)
    table[wanted + 1] = True
    return table.take(ids + 1, mode="clip")
