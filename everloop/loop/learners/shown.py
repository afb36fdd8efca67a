"""What a learner has been shown of a task, from which samples are drawn at the task's end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from everloop.loop.batch import Batch
from everloop.loop.state import pack

RECENT = 2048
"""Number of the latest examples of a task that are kept where they can't be shown again."""
CHUNK = 256
"""Number of examples that are read at once, and of steps whose infos are kept as they are."""
REPEATED = 10_000
"""Examples of a data set that are kept before repeats are removed."""

Ints = npt.NDArray[np.int64]
Read = Callable[[int, Ints], Batch]


class Shown(ABC):
    """The examples that a learner has been shown since `clear`.

    Args:
        limit: The largest number of examples of a task in a sample; None for the default.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    @abstractmethod
    def clear(self) -> None:
        """Forget everything, because a task begins."""

    @abstractmethod
    def add(self, batch: Batch, info: Mapping[str, Any]) -> None:
        """Add examples that have just been shown.

        Args:
            batch: The examples, with the task of each.
            info: The info of the step after which a data set revealed their labels; else empty.
        """

    @abstractmethod
    def sample(self, task: int, seed: int) -> Sequence[Batch]:
        """Return examples of `task`, each once, in random order.

        Args:
            task: Id of the task.
            seed: Seed of the draw and of the order, 0 or more.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what has been shown."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class ShownRows(Shown):
    """Examples of a data set, by their row numbers. They are read again when a sample is used.

    Examples that were altered, or that leaked in from other tasks, are left out. By default a
    sample holds all the others.

    Args:
        read: `read(task, rows)` returns the examples of a task in these rows of the data set.
        limit: The largest number of examples of a task in a sample; None for all.
    """

    def __init__(self, read: Read, limit: int | None = None) -> None:
        super().__init__(limit)
        self._read = read
        self._rows = np.zeros((2, 0), np.int64)  # row and task of each example
        self._distinct = 0  # how many of them there were when repeats were last removed
        self._infos: list[Mapping[str, Any]] = []  # of the latest steps

    def clear(self) -> None:
        self._rows, self._distinct = self._rows[:, :0], 0
        self._infos.clear()

    def add(self, batch: Batch, info: Mapping[str, Any]) -> None:
        self._infos.append(info)  # all that is done in every step, since that costs time
        if len(self._infos) == CHUNK:
            self._collect()

    def _collect(self) -> None:
        """Move what the latest infos say to the rows, of which repeats are removed at times."""
        latest = [
            np.stack([i["index"], i["origin"]])[:, ~(i["leaked"] | i["ood"])] for i in self._infos
        ]
        self._rows = np.concatenate([self._rows, *latest], axis=1)
        self._infos.clear()
        if self._rows.shape[1] > 2 * self._distinct + REPEATED:  # else the memory would grow
            self._rows = np.unique(self._rows, axis=1)
            self._distinct = self._rows.shape[1]

    def sample(self, task: int, seed: int) -> Sequence[Batch]:
        self._collect()
        index, origin = self._rows
        rows = np.random.default_rng(seed).permutation(np.unique(index[origin == task]))
        return _Rows(task, rows[: self.limit], self._read)

    def state_dict(self) -> dict[str, Any]:
        self._collect()
        return {"rows": self._rows.copy(), "distinct": self._distinct}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rows, self._distinct = state["rows"].copy(), state["distinct"]
        self._infos.clear()


class _Rows(Sequence[Batch]):
    """Batches of a data set's examples, which are read whenever one is asked for."""

    def __init__(self, task: int, rows: Ints, read: Read) -> None:
        self._task, self._read = task, read
        self._parts = [rows[begin : begin + CHUNK] for begin in range(0, len(rows), CHUNK)]

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(at, slice):
            return [self._read(self._task, rows) for rows in self._parts[at]]
        return self._read(self._task, self._parts[at])


class Recent(Shown):
    """The latest examples of each task, in worlds that can't show an example again.

    Args:
        limit: The largest number of examples of a task to keep; None for `RECENT`.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit)
        self._batches: dict[int, deque[Batch]] = {}

    def clear(self) -> None:
        self._batches.clear()

    def add(self, batch: Batch, info: Mapping[str, Any]) -> None:
        assert batch.task is not None, "the experience of a world has tasks"
        limit = RECENT if self.limit is None else self.limit
        for task in np.unique(batch.task.cpu().numpy()).tolist():
            rows = (batch.task == task).nonzero()[:, 0][-limit:]
            kept = self._batches.setdefault(task, deque())
            kept.append(batch[rows])  # a copy, because a rollout buffer is used again
            while sum(map(len, kept)) - len(kept[0]) >= limit:
                kept.popleft()

    def sample(self, task: int, seed: int) -> Sequence[Batch]:
        if task not in self._batches:
            return []
        everything = Batch.pool(self._batches[task])
        limit = RECENT if self.limit is None else self.limit
        latest = np.arange(len(everything))[-limit:]
        order = torch.from_numpy(np.random.default_rng(seed).permutation(latest))
        return list(everything[order].split(CHUNK))

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches": {
                task: [pack(vars(batch)) for batch in batches]
                for task, batches in self._batches.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches = {
            task: deque(Batch(**pack(fields)) for fields in batches)
            for task, batches in state["batches"].items()
        }
