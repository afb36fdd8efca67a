"""Experience replay: rehearse stored examples of past tasks beside every new batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.memory import Reservoir
from everloop.loop.strategies.base import Strategy, check_strength
from everloop.loop.world import Task

if TYPE_CHECKING:
    from everloop.loop.learner import Learner


class Replay(Strategy):
    """loss += strength * mean loss over stored examples of tasks that have ended.

    In streams the stored target is the label: experience replay (Chaudhry et al. 2019, "On tiny episodic
    memories"). In control it is what the policy itself put out at its task's end, and the loss is
    KL(stored || now): policy distillation on stored sequences (Rusu et al. 2016, eq. 3; "behavioural
    cloning" in Continual World, Wolczyk et al. 2021). The learner knows which, by its `targets` and `loss`.
    Examples of the task at hand are stored but not rehearsed, since they still come in by themselves.

    strength: from 0. With 0 training is plain, to the last bit.
    capacity: stored examples in all, a reservoir over everything observed.
    batch_size: how many are rehearsed with every update.
    Memory: capacity examples, images as uint8. Raises ValueError for arguments outside their ranges.
    """

    def __init__(self, strength: float = 1.0, capacity: int = 1000, batch_size: int = 64, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, allowed: 1 or more")
        self.strength, self.batch_size = check_strength(strength), batch_size
        self.memory = Reservoir(capacity, seed)
        self.past: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # ids of ended tasks

    def begin_task(self, task: Task, learner: Learner) -> None:
        self.past = self.past[self.past != task.id]  # a task that comes back is fresh again

    def observe(self, batch: Batch, learner: Learner) -> None:
        if self.strength == 0:
            return
        kept, rows = self.memory.reserve(len(batch))
        if len(kept):
            self._store(rows, batch[torch.from_numpy(kept)], learner)

    def extra_loss(self, learner: Learner, batch: Batch | None) -> Tensor | None:
        rows = self._rows_of(self.past)
        if self.strength == 0 or not len(rows):
            return None
        items = self.memory.read(self.memory.draw(self.batch_size, rows))
        return self.strength * learner.loss(Batch.from_items(items, learner.device))

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        ended = np.array([task.id], dtype=np.int64)
        rows = self._rows_of(ended)
        for chunk in np.array_split(rows, -(-len(rows) // 256)) if len(rows) else ():
            self._store(chunk, Batch.from_items(self.memory.read(chunk), learner.device), learner)
        self.past = np.append(self.past, ended)

    def _store(self, rows: npt.NDArray[np.int64], batch: Batch, learner: Learner) -> None:
        """Write `batch` with the target it would have now: at a task's end, from the policy that finished it."""
        self.memory.write(rows, replace(batch, target=learner.targets(batch)).to_items())

    def _rows_of(self, tasks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of the memory that hold examples of `tasks`."""
        if not len(tasks) or not len(self.memory):
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(np.isin(self.memory.items["task"][: len(self.memory)], tasks))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "past": self.past.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.past = state["past"].copy()
