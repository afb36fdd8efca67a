"""Progressive networks: a new column for each task, earlier ones frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Strategy, Traits, check_new_weights
from everloop.loop.strategies.parts.per_task import PerTask, freeze_below, head
from everloop.loop.strategies.parts.rng import isolated_rng


class Progressive(Strategy):
    """Adds a column of layers for each task, which reads the frozen columns of earlier tasks.

    Rusu et al. 2016. Earlier columns never change, so nothing is forgotten, but the network grows
    with every task. Weights outside the columns are frozen after the first task, except the last
    layer and a value head. Tasks of one phase share a column. A task that returns gets a new
    column, which reads its old one. In evaluation the task ID chooses the column.

    The network must have a part with `columns`, the index `column` of the active one, and
    `add_column()`, which returns the new column, such as `everloop.agents.ProgressiveMLP`.

    Deviation: lateral connections are linear, without the adapters of eq. 2.

    Memory: a column for each phase. The number of its lateral connections grows with the number of
    earlier columns.

    Args:
        columns: Add a column for each task; false is plain training.
        seed: Seed for the weights of new columns.
    """

    name = "progressive"
    traits: ClassVar[Traits] = Traits(copies=1, grows=True, task_id=True, network="progressive")
    state = ("tasks", "added", "ended", "generator")
    effects = frozenset({Effect.ADDS_WEIGHTS, Effect.FREEZES_WEIGHTS})

    def __init__(self, columns: bool = True, seed: int = 0) -> None:
        self.columns = columns
        self.generator = torch.Generator().manual_seed(seed)
        self.tasks = PerTask()  # keys: index of the column; tensors: the last layer
        self.added = 0  # number of columns besides the first one
        self.ended = False  # True if the newest column's phase has ended

    @property
    def active(self) -> bool:
        return self.columns

    def check(self, model: Model) -> None:
        _columned(model.module)
        check_new_weights(model, "progressive")
        if not model.task_aware:
            raise ValueError(
                "progressive needs the task ID to choose a column; use a world that shows it "
                "(scenario_type task)"
            )

    def _restored(self, model: Model) -> None:
        for _ in range(len(_columned(model.module).columns), self.added + 1):
            freeze_below(model)
            self._add_column(model, torch.Generator())
        if self.ended:
            freeze_below(model)

    def begin_task(self, task: Task, model: Model) -> None:
        if self.ended:
            self._add_column(model, self.generator)
            self.added += 1
            self.ended = False
        self.tasks.begin(task, model)

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        freeze_below(model)
        self.tasks.end(task, _columned(model.module).column, head(model))
        self.ended = True

    def _add_column(self, model: Model, generator: torch.Generator) -> None:
        with isolated_rng(model, generator):
            model.add_weights(list(_columned(model.module).add_column().parameters()))

    @contextmanager
    def view(self, task: Task, model: Model) -> Iterator[None]:
        """Use the task's own column and last layer."""
        if task not in self.tasks:
            yield
            return
        network = _columned(model.module)
        now, network.column = network.column, self.tasks.keys[task.id]
        try:
            with self.tasks.applied(task, model):
                yield
        finally:
            network.column = now


def _columned(module: nn.Module) -> Any:
    """Return the part of the network that has columns."""
    for part in module.modules():
        if hasattr(part, "add_column"):
            return part
    raise ValueError(
        "the network has no columns, but progressive needs them; use architecture progressive"
    )
