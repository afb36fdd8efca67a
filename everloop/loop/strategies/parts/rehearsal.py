"""The base class of strategies that keep a replay memory of observed examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.memory import MEMORIES, Memory
from everloop.loop.model import Model
from everloop.loop.strategies.base import (
    Forward,
    Strategy,
    check_choice,
    check_range,
    check_strength,
)
from everloop.loop.strategies.parts.rng import preserve_rng_state


class Rehearsal(Strategy):
    """Base class of strategies that store observed examples in a memory.

    A subclass defines what is stored with each example, how the examples are used, and what
    `strength` (0 or more) means. With strength 0 the strategy is inactive: nothing is stored, and
    the results are bit for bit those of plain training. In control with a recurrent policy, an
    example is a sequence of steps.

    The default capacity and batch size are the same for all strategies, so that they compare. The
    papers choose them for each data set.

    Args:
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative. reservoir keeps a uniform sample of all examples, class-balanced a uniform
            sample of each class, and ring the latest examples of each task. For each class,
            uncertain keeps the examples with the highest entropy when observed, and informative
            those with the highest loss. All rules except reservoir and ring need one class label
            per example.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.

    Raises:
        ValueError: If a number is out of its range or `memory` is unknown. When attached, if the
            memory needs labels that the model does not have.
    """

    state: ClassVar[tuple[str, ...]] = ("memory", "past")
    stores_output: ClassVar[bool] = False
    """True to store each example with the network's output at the time it was observed.

    If False, control stores outputs as targets, and updates them at the task's end to the outputs
    of the final policy.
    """

    def __init__(
        self,
        strength: float = 1.0,
        capacity: int = 1000,
        batch_size: int = 64,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        check_range("batch_size", batch_size, 1)
        check_choice("memory", memory, MEMORIES)
        self.strength, self.batch_size = check_strength(strength), batch_size
        self._rule = memory
        self.memory: Memory = MEMORIES[memory](capacity, seed)
        self.past: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # IDs of ended tasks
        self._next: list[Batch | None] = []  # what `draw_next` drew, until it is taken

    def check(self, model: Model) -> None:
        labels = self.memory.group_by == "target" or self.memory.score_by is not None
        if labels and not model.labelled:
            raise ValueError(
                f"memory {self._rule} needs labels, which this learner does not have; use "
                "reservoir or ring"
            )
        if self.memory.group_by == "target" and model.classes is None:
            raise ValueError(
                f"memory {self._rule} needs one class label for each example; use reservoir or ring"
            )

    def begin_task(self, task: Task, model: Model) -> None:
        self.past = self.past[self.past != task.id]  # a task that returns is no longer past

    def observe(self, batch: Batch, model: Model) -> None:
        groups, scores = self._groups(batch), self._scores(batch, model)
        chosen, rows = self.memory.reserve(len(batch), groups, scores)
        if not len(chosen):
            return
        # if all are stored, and in order, the batch needs no copy
        whole = len(chosen) == len(batch) and (np.diff(chosen) > 0).all()
        self.store(rows, batch if whole else batch[torch.from_numpy(chosen)], model)

    def _groups(self, batch: Batch) -> npt.NDArray[np.int64] | None:
        """Return the groups that the memory balances, labels or tasks (B,); None without groups."""
        if self.memory.group_by is None:
            return None
        field = batch.task if self.memory.group_by == "task" else batch.target
        assert field is not None, "the batch lacks the task IDs or labels that the memory groups by"
        return (field if self.memory.group_by == "task" else field[0]).cpu().numpy()

    def _scores(self, batch: Batch, model: Model) -> npt.NDArray[np.floating[Any]] | None:
        """Return the scores by which the memory ranks examples, (B,); None without a ranking."""
        if self.memory.score_by is None:
            return None
        output = observed_output(batch, model)
        if self.memory.score_by == "entropy":
            return model.likelihood.entropy(output).sum(0).cpu().numpy()
        assert batch.target is not None
        return -model.likelihood.log_prob(output, batch.target).sum(0).cpu().numpy()

    def store(self, rows: npt.NDArray[np.int64], batch: Batch, model: Model) -> None:
        """Write the examples of `batch` to `rows` of the memory.

        Their targets are the labels, or in control the network's present outputs.
        """
        output = observed_output(batch, model) if self.stores_output else None
        target = model.targets(batch)
        stored = replace(batch, target=target, output=output, action=None, value=None)
        self.memory.write(rows, stored.to_items())

    def read(self, rows: npt.NDArray[np.int64], model: Model) -> Batch:
        """Return the examples in `rows` of the memory."""
        return Batch.from_items(self.memory.read(rows), model.device)

    def draw(
        self, model: Model, tasks: npt.NDArray[np.int64] | None = None, count: int | None = None
    ) -> Batch | None:
        """Draw stored examples uniformly, with replacement; None if there are none.

        Args:
            model: The model. If its training augments images, the examples are augmented too.
            tasks: IDs of the tasks to sample from; None for all tasks.
            count: Number of examples, 1 or more; None for `batch_size`.
        """
        rows = self.memory.draw(self.batch_size if count is None else count, tasks)
        return model.augmented(self.read(rows, model)) if len(rows) else None

    def draw_next(self, model: Model) -> None:
        """Draw the stored examples of the next update, before its own batch is stored.

        For strategies that replay outside of `recall`. They call this at the start of `observe`.
        """
        self._next = [self.sample(model)]

    def take_next(self, model: Model) -> Batch | None:
        """Return what `draw_next` drew, or a new draw in a further update on the same batch."""
        return self._next.pop() if self._next else self.sample(model)

    def sample(self, model: Model) -> Batch | None:
        """Draw stored examples for `draw_next`; None if there are none."""
        return self.draw(model)

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        return None if replayed is None else self.replay_loss(replayed, model)

    def replay_loss(self, replayed: Forward, model: Model) -> Tensor:
        """Return strength * mean loss of the replayed examples."""
        assert replayed.batch.target is not None
        return self.strength * model.loss_of(replayed.output.prediction, replayed.batch.target)

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        if not model.labelled and not self.stores_output:
            self._store_again(self.memory.rows_of(np.array([task.id])), model)
        self.past = np.append(self.past, task.id)
        tag = f"memory/{type(self).__name__}/class"
        shares = self.memory.balance()
        model.on_log({f"{tag}_{label}": share for label, share in shares.items()})

    def _store_again(self, rows: npt.NDArray[np.int64], model: Model) -> None:
        """Store the examples in `rows` again, with the network's present outputs as targets."""
        for begin in range(0, len(rows), 256):
            chunk = rows[begin : begin + 256]
            self.store(chunk, self.read(chunk, model), model)


def observed_output(batch: Batch, model: Model) -> Tensor:
    """Return the prediction stored in `batch`, (T, B, P), or compute one with the present weights.

    Computing it changes neither the network's mode and buffers nor torch's generators.
    """
    if batch.output is not None:
        return batch.output
    with torch.no_grad(), preserve_rng_state(model):
        return model.outputs_with(batch, model.copied_buffers())


def check_labels(model: Model, strategy: str, instead: str) -> None:
    """Raise ValueError unless every example has one class label.

    Args:
        model: The model.
        strategy: Name of the strategy, for the message.
        instead: Strategies that can be used instead, for the message.
    """
    if model.classes is None:
        raise ValueError(f"{strategy} needs one class label for each example; use {instead}")
