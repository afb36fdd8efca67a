"""Progressive networks: a new column for each task, earlier ones frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.strategies.base import Strategy, Traits, check_may_grow
from everloop.loop.strategies.parts.rng import own_draws
from everloop.loop.strategies.parts.task_heads import TaskHeads, check_may_freeze, freeze_below

if TYPE_CHECKING:
    from everloop.loop.learners.learner import Learner


class Progressive(Strategy):
    """Adds a column of layers for each task, which reads the frozen columns of earlier tasks.

    Rusu et al. 2016. Nothing learned is changed, so forgetting is impossible, and the network grows
    with every task. It needs a network with `columns`: a part that has `add_column()`, which
    returns the new column, and the number `column` of the active one, such as
    `everloop.agents.ProgressiveMLP`. Weights outside the columns, except the last layer and a value
    head, are frozen after the first task. Tasks of one phase share a column. A task that returns
    gets a new column, which reads its old one. The task ID chooses the column.

    Deviation: laterals are linear, without the adapters of eq. 2.

    Memory: a column for each phase; its laterals grow with the number of earlier ones.

    Args:
        columns: Add a column for each task; false is plain training.
        seed: Seed for the weights of new columns.
    """

    name = "progressive"
    traits: ClassVar[Traits] = Traits(copies=1, grows=True, task_id=True, network="progressive")
    state = ("column", "ended", "heads", "generator")
    adds_weights = True

    def __init__(self, columns: bool = True, seed: int = 0) -> None:
        self.columns = columns
        self.generator = torch.Generator().manual_seed(seed)
        self.heads, self.column = TaskHeads(), dict[int, int]()  # task id -> its column
        self.ended = False  # the phase of the newest column

    @property
    def active(self) -> bool:
        return self.columns

    def check(self, learner: Learner) -> None:
        _columned(learner.module)
        check_may_grow(learner, "progressive")
        check_may_freeze(learner, "progressive")
        if not learner.told:
            raise ValueError("progressive chooses a column by the task's id, allowed where the world tells it (scenario_type task)")

    def _restored(self, learner: Learner) -> None:
        for _ in range(len(_columned(learner.module).columns), max(self.column.values(), default=0) + 1):
            freeze_below(learner)
            self._add_column(learner, torch.Generator())
        if self.ended:
            freeze_below(learner)

    def begin_task(self, task: Task, learner: Learner) -> None:
        if self.ended:
            self._add_column(learner, self.generator)
            self.ended = False
        self.column[task.id] = _columned(learner.module).column
        self.heads.forget(task.id)

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        freeze_below(learner)
        self.heads.keep(task.id, learner)
        self.ended = True

    def _add_column(self, learner: Learner, generator: torch.Generator) -> None:
        with own_draws(learner, generator):
            learner.add_weights(list(_columned(learner.module).add_column().parameters()))

    @contextmanager
    def view(self, task: Task, learner: Learner) -> Iterator[None]:
        """The task's own column and head."""
        if task.id not in self.column:
            yield
            return
        network = _columned(learner.module)
        now, network.column = network.column, self.column[task.id]
        try:
            with self.heads.shown(task.id, learner):
                yield
        finally:
            network.column = now


def _columned(module: nn.Module) -> Any:
    """The part of the network that has columns."""
    for part in module.modules():
        if hasattr(part, "add_column"):
            return part
    raise ValueError("the network has no columns, allowed for progressive: one that has (architecture progressive)")
