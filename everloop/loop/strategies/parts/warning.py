"""A warning, once, that a method can't help where it is used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import Stateful


class ClassIncrementalWarning(Stateful):
    """Warns when a second task has none of the first one's labels, and nothing tells the task.

    Then every task's own loss pushes the logits of all other tasks' classes down, through a head
    that they share, and a penalty on weights does not know of it: van de Ven et al. 2022, table 2,
    where EWC and SI are as good as nothing.
    """

    state = ("labels", "said")

    def __init__(self, strategy: str) -> None:
        self.strategy, self.labels = strategy, set[int]()
        self.said = False

    def look(self, model: Model, batches: Sequence[Batch]) -> None:
        """At a task's end, with examples of it."""
        if any(strategy.traits.examples for strategy in model.strategies):
            return  # stored examples do what the penalty cannot
        if self.said or model.classes is None or model.task_aware:
            return
        labels = {
            int(label)
            for batch in batches
            if batch.target is not None
            for label in batch.target.flatten().tolist()
        }
        if self.labels and labels and not labels & self.labels:
            self.said = True
            warnings.warn(
                f"{self.strategy} holds weights, which does not help where each task brings new "
                "classes and the task is not told: "
                "the new classes' loss pushes the old ones' logits down (van de Ven et al. 2022). "
                "Add a strategy that stores examples, such as er_ace or derpp, or a head per task",
                stacklevel=2,
            )
        self.labels |= labels
