"""Memories in which every class, or every task, has an equal share."""

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
    """When it is full, an example of a smaller group takes the place of one of the largest group.

    One of the largest group itself can only take the place of another of its group. Which one goes,
    a subclass says.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self.members: dict[
            int, Any
        ] = {}  # group -> its rows, in whatever form the rule finds the next to go
        self.seen: dict[int, int] = {}  # group -> offers so far
        self.largest = 0  # rows of the largest group

    @abstractmethod
    def _add(self, group: int, row: int, score: float) -> None:
        """Note that `row` holds an example of `group`."""

    @abstractmethod
    def _remove(self, group: int, chance: float) -> int:
        """Take out the row of `group` that goes first; `chance` is uniform in [0, 1)."""

    @abstractmethod
    def _admits(self, group: int, score: float, chance: float) -> bool:
        """Whether an example of a full group replaces another one of it."""

    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        assert groups is not None, "a grouped memory is told the groups"
        kept: dict[int, int] = {}  # row -> offer, the last if there are several
        chances = self.rng.random((offers, 2))  # drawn at once: one draw costs as much as a hundred
        values = np.zeros(offers) if scores is None else scores
        for i, (group, score) in enumerate(zip(groups.tolist(), values.tolist(), strict=True)):
            row = self._row_for(group, score, float(chances[i, 0]), float(chances[i, 1]))
            if row is not None:
                kept[row] = i
        self.offered += offers
        return np.array(list(kept.values()), np.int64), np.array(list(kept), np.int64)

    def _row_for(self, group: int, score: float, chance: float, choice: float) -> int | None:
        """Where the next example of `group` goes; None if it is not kept."""
        self.seen[group] = self.seen.get(group, 0) + 1
        mine = len(self.members.get(group, ()))
        if self.size < self.capacity:
            row = self.size
            self.size += 1
        elif (
            mine < self.largest and mine + 1 == self.seen[group]
        ):  # it never lost one, nor was refused one
            row = self._remove(self._find_largest(chance), choice)
        elif mine and self._admits(group, score, chance):
            row = self._remove(group, choice)
        else:
            return None
        self._add(group, row, score)
        self.largest = max(self.largest, len(self.members[group]))
        return row

    def _find_largest(self, chance: float) -> int:
        """A group with the most rows, any of them alike."""
        largest = [group for group, rows in self.members.items() if len(rows) == self.largest]
        if len(largest) == 1:
            self.largest -= 1  # the one that goes leaves no group as large as it was
        return largest[int(chance * len(largest))]

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
        return list(rows)


class ClassBalanced(Grouped):
    """Class-balanced reservoir sampling (Chrysakis & Moens 2020, algorithm 1): of each class a
    uniform sample.
    """

    group_by = "target"

    def _add(self, group: int, row: int, score: float) -> None:
        self.members.setdefault(group, []).append(row)

    def _remove(self, group: int, chance: float) -> int:
        rows = self.members[group]
        i = int(chance * len(rows))
        rows[i], rows[-1] = rows[-1], rows[i]
        return int(rows.pop())

    def _admits(self, group: int, score: float, chance: float) -> bool:
        return chance * self.seen[group] < len(self.members[group])


class Ring(Grouped):
    """Of each task the last ones it was offered (Lopez-Paz & Ranzato 2017, section 3)."""

    group_by = "task"

    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        assert groups is not None, "a grouped memory is told the groups"
        task = int(groups[0]) if offers else -1
        mine = self.members.get(task, ())
        grows = len(mine) < self.largest and len(mine) == self.seen.get(task, 0)
        if self.size < self.capacity or not mine or grows or (groups != task).any():
            return super().reserve(offers, groups, scores)
        # a task that has its share, as in most batches: its oldest rows in turn, all at once
        self.rng.random((offers, 2))  # as it is drawn on the other way
        self.seen[task] += offers
        self.offered += offers
        rows = np.fromiter(islice(mine, offers), np.int64)
        mine.rotate(-offers)
        first = np.arange(len(rows))
        return first + (offers - 1 - first) // len(mine) * len(mine), rows

    def _add(self, group: int, row: int, score: float) -> None:
        self.members.setdefault(group, deque()).append(row)

    def _remove(self, group: int, chance: float) -> int:
        return int(self.members[group].popleft())

    def _admits(self, group: int, score: float, chance: float) -> bool:
        return True

    @staticmethod
    def _restore(rows: list[Any]) -> Any:
        return deque(rows)


class _Ranked(Grouped):
    """Of each class the examples of the highest scores."""

    group_by = "target"

    def _add(self, group: int, row: int, score: float) -> None:
        heapq.heappush(self.members.setdefault(group, []), (score, row))

    def _remove(self, group: int, chance: float) -> int:
        return int(heapq.heappop(self.members[group])[1])

    def _admits(self, group: int, score: float, chance: float) -> bool:
        return bool(score > self.members[group][0][0])


class Uncertain(_Ranked):
    """Of each class the examples that the network was least sure of when they came: the highest
    entropy.
    """

    score_by = "entropy"


class Informative(_Ranked):
    """Of each class the examples that the network had most to learn from when they came: the
    highest loss.
    """

    score_by = "loss"
