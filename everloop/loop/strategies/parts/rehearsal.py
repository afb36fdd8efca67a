"""What all strategies that store examples share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.likelihood import Categorical
from everloop.loop.memory import MEMORIES, Memory
from everloop.loop.strategies.base import Strategy, check_choice, check_range, check_strength
from everloop.loop.strategies.parts.rng import unnoticed

if TYPE_CHECKING:
    from everloop.contract import NetworkOutput
    from everloop.loop.learners.learner import Learner


class Rehearsal(Strategy):
    """Base of the strategies that store observed examples in a memory.

    A subclass defines what is stored with an example, how it is used, and what its `strength` (0 or
    more) weights. With strength 0 nothing is stored, and training is plain to the last bit. In
    control with a recurrent policy, an example is a sequence of steps.

    Args:
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative. reservoir is a uniform sample of all examples. class-balanced is a uniform
            sample of each class, and ring the latest examples of each task. uncertain and
            informative keep, for each class, the examples with the highest entropy or loss when
            observed. All but reservoir and ring need one class label per example.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.

    Raises:
        ValueError: If a number is out of its range or `memory` is unknown; on attaching, if the
            memory needs labels that the learner does not have.
    """

    state: ClassVar[tuple[str, ...]] = ("memory", "past")
    stores_output: ClassVar[bool] = False
    """Whether what the network puts out for an example when it is observed is stored with it, and stays.

    Otherwise the target in control, which is the network's own output, becomes that of the policy that has finished the task.
    """

    def __init__(self, strength: float, capacity: int, batch_size: int, memory: str, seed: int) -> None:
        check_range("batch_size", batch_size, 1)
        check_choice("memory", memory, MEMORIES)
        self.strength, self.batch_size = check_strength(strength), batch_size
        self.memory: Memory = MEMORIES[memory](capacity, seed)
        self.past: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # ids of ended tasks

    def check(self, learner: Learner) -> None:
        labels = self.memory.group_by == "target" or self.memory.score_by is not None
        if labels and not learner.labelled:
            raise ValueError(f"memory is {type(self.memory).__name__}, which needs labels, allowed where there are none: reservoir, ring")
        if self.memory.group_by == "target" and not isinstance(learner.likelihood, Categorical):
            raise ValueError(f"memory is {type(self.memory).__name__}, which needs one class an example, allowed here: reservoir, ring")

    def begin_task(self, task: Task, learner: Learner) -> None:
        self.past = self.past[self.past != task.id]  # a task that comes back is fresh again

    def observe(self, batch: Batch, learner: Learner) -> None:
        kept, rows = self.memory.reserve(len(batch), self._groups(batch), self._scores(batch, learner))
        if len(kept):
            self.store(rows, batch if len(kept) == len(batch) and (np.diff(kept) > 0).all() else batch[torch.from_numpy(kept)], learner)

    def _groups(self, batch: Batch) -> npt.NDArray[np.int64] | None:
        """What the memory balances: labels or tasks."""
        if self.memory.group_by is None:
            return None
        field = batch.task if self.memory.group_by == "task" else batch.target
        assert field is not None, "a batch of a world has tasks, and one of a stream labels"
        return (field if self.memory.group_by == "task" else field[0]).cpu().numpy()

    def _scores(self, batch: Batch, learner: Learner) -> npt.NDArray[np.floating[Any]] | None:
        """What the memory ranks examples by."""
        if self.memory.score_by is None:
            return None
        output = observed_output(batch, learner)
        if self.memory.score_by == "entropy":
            return learner.likelihood.entropy(output).sum(0).cpu().numpy()
        assert batch.target is not None
        return -learner.likelihood.log_prob(output, batch.target).sum(0).cpu().numpy()

    def store(self, rows: npt.NDArray[np.int64], batch: Batch, learner: Learner) -> None:
        """Write `batch` with the target it would have now."""
        output = observed_output(batch, learner) if self.stores_output else None
        self.memory.write(rows, replace(batch, target=learner.targets(batch), output=output, action=None, value=None).to_items())

    def read(self, rows: npt.NDArray[np.int64], learner: Learner) -> Batch:
        """The examples in `rows`."""
        return Batch.from_items(self.memory.read(rows), learner.device)

    def draw(self, learner: Learner, tasks: npt.NDArray[np.int64] | None = None, count: int | None = None) -> Batch | None:
        """Stored examples to learn from, `batch_size` unless `count` says otherwise, of all tasks or of these; None without any."""
        rows = self.memory.draw(self.batch_size if count is None else count, tasks)
        return learner.augmented(self.read(rows, learner)) if len(rows) else None

    def recall_loss(self, learner: Learner, stored: Batch, output: NetworkOutput) -> Tensor:
        """strength * mean loss of what was recalled."""
        assert stored.target is not None
        return self.strength * learner.loss_of(output.prediction, stored.target)

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        if not learner.labelled and not self.stores_output:
            self._store_again(self.memory.rows_of(np.array([task.id])), learner)
        self.past = np.append(self.past, task.id)
        shares = self.memory.balance()
        learner.on_log({f"memory/{type(self).__name__}/class_{label}": share for label, share in shares.items()})

    def _store_again(self, rows: npt.NDArray[np.int64], learner: Learner) -> None:
        """With the target that the examples in `rows` would have now."""
        for begin in range(0, len(rows), 256):
            chunk = rows[begin : begin + 256]
            self.store(chunk, self.read(chunk, learner), learner)


def observed_output(batch: Batch, learner: Learner) -> Tensor:
    """What the network put out for `batch`; where the algorithm did not say it is asked as in training, without a trace."""
    if batch.output is not None:
        return batch.output
    with torch.no_grad(), unnoticed(learner):
        return learner.outputs_with(batch, learner.buffers_aside())


def check_labels(learner: Learner, strategy: str, instead: str) -> None:
    """Raise ValueError unless examples are of one class each, with a label."""
    if not learner.labelled or not isinstance(learner.likelihood, Categorical):
        raise ValueError(f"{strategy} needs a class for each example, allowed here: {instead}")
