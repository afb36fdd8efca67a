"""Replay memories in which every class, or every task, has an equal share."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections import deque
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.loop.memory.memory import Kept, Memory
from everloop.loop.memory.store import Rows


class Grouped(Memory):
    """A replay memory that balances groups: classes or tasks.

    When the memory is full, an example of a smaller group replaces one of a largest group. An
    example of a largest group can only replace another one of its own group. A subclass decides
    whether it does, and which example goes.

    Attributes:
        members: The rows of each group, in the form in which the subclass finds the next to go.
        seen: The number of offers of each group so far.
        largest: The number of rows of the largest group.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self.members: dict[int, Any] = {}
        self.seen: dict[int, int] = {}
        self.largest = 0

    @abstractmethod
    def _add(self, group: int, row: int, score: float) -> None:
        """Note that `row` holds an example of `group`."""

    @abstractmethod
    def _remove(self, group: int, uniform: float) -> int:
        """Remove the next row to go from `group`; `uniform` is a random number in [0, 1)."""

    @abstractmethod
    def _admits(self, group: int, score: float, uniform: float) -> bool:
        """Return True if an example of a full group replaces another one of that group."""

    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        assert groups is not None, "reserve needs the group of each example"
        kept: dict[int, int] = {}  # row -> the last offer that took it
        draws = self.rng.random((offers, 2))  # at once: one draw costs as much as a hundred
        values = np.zeros(offers) if scores is None else scores
        for i, (group, score) in enumerate(zip(groups.tolist(), values.tolist(), strict=True)):
            row = self._row_for(group, score, float(draws[i, 0]), float(draws[i, 1]))
            if row is not None:
                kept[row] = i
        self.offered += offers
        return np.array(list(kept.values()), np.int64), np.array(list(kept), np.int64)

    def _row_for(self, group: int, score: float, uniform: float, choice: float) -> int | None:
        """Return the row for the next example of `group`, or None if it is not kept."""
        self.seen[group] = self.seen.get(group, 0) + 1
        mine = len(self.members.get(group, ()))
        never_lost_one = mine + 1 == self.seen[group]  # nor was one refused
        if self.size < self.capacity:
            row = self.size
            self.size += 1
        elif mine < self.largest and never_lost_one:
            row = self._remove(self._find_largest(uniform), choice)
        elif mine and self._admits(group, score, uniform):
            row = self._remove(group, choice)
        else:
            return None
        self._add(group, row, score)
        self.largest = max(self.largest, len(self.members[group]))
        return row

    def _find_largest(self, uniform: float) -> int:
        """Return a group with the most rows, drawn uniformly among them; it will lose a row."""
        largest = [group for group, rows in self.members.items() if len(rows) == self.largest]
        if len(largest) == 1:
            self.largest -= 1
        return largest[int(uniform * len(largest))]

    def state_dict(self) -> dict[str, Any]:
        members = {group: list(rows) for group, rows in self.members.items()}
        return super().state_dict() | {
            "members": members,
            "seen": dict(self.seen),
            "largest": self.largest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.members = {group: self._restore(rows) for group, rows in state["members"].items()}
        self.seen, self.largest = dict(state["seen"]), state["largest"]

    @staticmethod
    def _restore(rows: list[Any]) -> Any:
        """Return one group's rows in the form in which `members` holds them."""
        return list(rows)


class ClassBalanced(Grouped):
    """Class-balanced reservoir sampling: a uniform sample of each class.

    Chrysakis & Moens 2020, algorithm 1.
    """

    group_by = "target"

    def _add(self, group: int, row: int, score: float) -> None:
        self.members.setdefault(group, []).append(row)

    def _remove(self, group: int, uniform: float) -> int:
        rows = self.members[group]
        i = int(uniform * len(rows))
        rows[i], rows[-1] = rows[-1], rows[i]
        return int(rows.pop())

    def _admits(self, group: int, score: float, uniform: float) -> bool:
        return uniform * self.seen[group] < len(self.members[group])


class Ring(Grouped):
    """The latest examples of each task (Lopez-Paz & Ranzato 2017, section 3)."""

    group_by = "task"

    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        assert groups is not None, "reserve needs the group of each example"
        task = int(groups[0]) if offers else -1
        mine = self.members.get(task, ())
        grows = len(mine) < self.largest and len(mine) == self.seen.get(task, 0)
        if self.size < self.capacity or not mine or grows or (groups != task).any():
            return super().reserve(offers, groups, scores)
        # The task has its full share, as in most batches: replace its oldest rows, all at once.
        self.rng.random((offers, 2))  # as many draws as the general way takes
        self.seen[task] += offers
        self.offered += offers
        rows = np.fromiter(islice(mine, offers), np.int64)
        mine.rotate(-offers)
        first = np.arange(len(rows))
        return first + (offers - 1 - first) // len(mine) * len(mine), rows

    def _add(self, group: int, row: int, score: float) -> None:
        self.members.setdefault(group, deque()).append(row)

    def _remove(self, group: int, uniform: float) -> int:
        return int(self.members[group].popleft())

    def _admits(self, group: int, score: float, uniform: float) -> bool:
        return True

    @staticmethod
    def _restore(rows: list[Any]) -> Any:
        return deque(rows)


class _Ranked(Grouped):
    """The examples of each class with the highest scores."""

    group_by = "target"

    def _add(self, group: int, row: int, score: float) -> None:
        heapq.heappush(self.members.setdefault(group, []), (score, row))

    def _remove(self, group: int, uniform: float) -> int:
        return int(heapq.heappop(self.members[group])[1])

    def _admits(self, group: int, score: float, uniform: float) -> bool:
        return bool(score > self.members[group][0][0])


class Uncertain(_Ranked):
    """The examples of each class with the highest entropy of the output when they were offered."""

    score_by = "entropy"


class Informative(_Ranked):
    """The examples of each class with the highest loss when they were offered."""

    score_by = "loss"
