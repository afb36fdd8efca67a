"""Which example each copy of a stream shows: the chains of all tasks, and what awaits a guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.chain import Chain
from everloop.envs.mixture import FIELDS, ORIGIN, Presentations
from everloop.envs.task import Mask

Sources = tuple[int, ...]
"""The ids of the tasks of one chain."""


class Supply:
    """Serves each copy from the chain of its source, which is one task or several together.

    Args:
        copies: Number of copies, B.
        tasks: Number of tasks. The first sources are the single tasks, in the order of their ids.
        draw_pass: `draw_pass(tasks, epoch)` returns one pass over the union of tasks, (FIELDS, n).

    Attributes:
        pending: What each copy shows, (FIELDS, B); -1 before the first reset.
        source: Number of each copy's source, (B,).
    """

    def __init__(
        self, copies: int, tasks: int, draw_pass: Callable[[Sources, int], Presentations]
    ) -> None:
        self._copies, self._tasks, self._draw_pass = copies, tasks, draw_pass
        self._sources: list[Sources] = [(task,) for task in range(tasks)]
        self.source = np.zeros(copies, dtype=np.int64)
        self.restart()

    def restart(self) -> None:
        """Forget all passes: each chain begins with its first pass."""
        self._chains = [self._chain(tasks) for tasks in self._sources]
        self.pending: Presentations = np.full((FIELDS, self._copies), -1, dtype=np.int64)
        self._pending_source = np.full(self._copies, -1, dtype=np.int64)
        self._find_single()

    def _chain(self, tasks: Sources) -> Chain:
        return Chain(partial(self._draw_pass, tasks))

    def _find_single(self) -> None:
        """Find out whether all copies have one source, which is the fast way."""
        one = bool((self.source == self.source[0]).all())
        self._single = int(self.source[0]) if one else None

    @property
    def single(self) -> tuple[int, Chain] | None:
        """The number and the chain of the source of all copies; None if they differ."""
        return None if self._single is None else (self._single, self._chains[self._single])

    @property
    def empty(self) -> bool:
        """True before the first example was served."""
        return bool(self._pending_source[0] < 0)

    def find(self, tasks: Sources) -> int:
        """Return the number of the source of `tasks`. For a single task it is the task's id."""
        if tasks not in self._sources:
            self._sources.append(tasks)
            self._chains.append(self._chain(tasks))
        return self._sources.index(tasks)

    def begin(self, mask: Mask) -> None:
        """Serve the copies of `mask` that have another source than what they show came from.

        What they show goes back to its own chain.
        """
        switched = mask & (self._pending_source != self.source)
        for copy in np.flatnonzero(switched & (self._pending_source >= 0)):
            self._chains[self._pending_source[copy]].give_back(self.pending[:, copy])
        if switched.any():
            self._serve(switched)
        self._find_single()

    def advance(self) -> None:
        """Give every copy the next example of its chain."""
        if self._single is None:
            self._serve(np.ones(self._copies, dtype=np.bool_))
        else:
            self.pending = self._chains[self._single].take(self._copies)

    def _serve(self, mask: Mask) -> None:
        self.pending = self.pending.copy()  # views of the last one are in infos
        for source in np.unique(self.source[mask]):
            copies = np.flatnonzero(mask & (self.source == source))
            self.pending[:, copies] = self._chains[source].take(len(copies))
            self._pending_source[copies] = source

    @property
    def mixes(self) -> bool:
        """True if there is a source of several tasks."""
        return len(self._sources) > self._tasks

    def task(self) -> npt.NDArray[np.int64]:
        """Return the task that each copy plays, (B,); of several that of the example it shows."""
        return np.where(self.source < self._tasks, self.source, self.pending[ORIGIN])

    def is_leaked(self) -> Mask:
        """Return, (B,), whether what each copy shows belongs to no task of its source."""
        leaked: Mask = self.pending[ORIGIN] != self._pending_source
        if self.mixes:
            own = np.zeros((len(self._sources), self._tasks), dtype=np.bool_)
            for source, tasks in enumerate(self._sources):
                own[source, list(tasks)] = True
            leaked[:] = ~own[self._pending_source, self.pending[ORIGIN]]
        return leaked

    def state_dict(self) -> dict[str, Any]:
        """Return where every chain stands, and what the copies show."""
        return {
            "sources": [list(tasks) for tasks in self._sources],
            "cursor": [chain.cursor for chain in self._chains],
            "passes": [chain.epoch for chain in self._chains],
            "returned": [[one.copy() for one in chain.returned] for chain in self._chains],
            "source": self.source.copy(),
            "pending": self.pending.copy(),
            "pending_source": self._pending_source.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sources = [tuple(tasks) for tasks in state["sources"]]
        self.restart()
        for chain, epoch, cursor, returned in zip(
            self._chains, state["passes"], state["cursor"], state["returned"], strict=True
        ):
            chain.restore(epoch, cursor, returned)
        self.source = state["source"].copy()
        self.pending = state["pending"].copy()
        self._pending_source = state["pending_source"].copy()
        self._find_single()
