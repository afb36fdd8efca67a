"""A warning that a penalty on weights can't help in class-incremental learning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.state import Stateful


class ClassIncrementalWarning(Stateful):
    """Warns once if a task has no label of earlier tasks and the task ID is unavailable.

    Then all tasks share one head, and every task's loss pushes down the logits of the other tasks'
    classes. A penalty on weights does not prevent this: EWC and SI are no better than plain
    training in table 2 of van de Ven et al. 2022.

    Args:
        strategy: Name of the strategy that warns.
    """

    state = ("labels", "warned")

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.labels = set[int]()
        self.warned = False

    def check(self, model: Model, batches: Sequence[Batch]) -> None:
        """Warn if needed. Call this at a task's end, with batches of its examples."""
        if any(strategy.traits.examples for strategy in model.strategies):
            return  # replayed examples keep up the logits of past classes
        if self.warned or model.classes is None or model.task_aware:
            return
        labels = {
            int(label)
            for batch in batches
            if batch.target is not None
            for label in batch.target.flatten().tolist()
        }
        if self.labels and labels and not labels & self.labels:
            self.warned = True
            warnings.warn(
                f"{self.strategy} does not help where each task brings new classes and the task ID "
                "is unavailable: the loss of new classes pushes down the logits of past ones "
                "(van de Ven et al. 2022); add a strategy that stores examples, such as er_ace or "
                "derpp, or use one head per task",
                stacklevel=2,
            )
        self.labels |= labels
