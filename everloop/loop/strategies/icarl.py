"""iCaRL: exemplars by herding, distillation, nearest-class-mean classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.memory import Store, herding
from everloop.loop.memory.store import Rows
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Forward, Strategy, Traits, check_range
from everloop.loop.strategies.parts.rehearsal import check_labels
from everloop.loop.strategies.parts.teacher import Teacher

FAR = -1e9
"""The output of a class without exemplars. It is finite, so that KL divergences are."""


class ICaRL(Strategy):
    """Classifies by the nearest mean of a class's exemplars, and distils outputs for past classes.

        loss = sum over classes of BCE(sigmoid(z), t)
            t = sigmoid(z*) for past classes that the current task lacks, else 1[y = class]
        guess = argmin_y || phi(x) / |phi(x)| - mu_y ||
            mu_y is the mean of phi / |phi| over the exemplars of class y, scaled to length 1
                                                  (Rebuffi et al. 2017, eq. 1, algorithms 1 to 5)

    z are the logits, and z* those of the network at the last task's end. phi(x) is the input of the
    network's last linear layer. `batch_size` exemplars of past classes are added to each fresh
    batch. At a task's end each class may keep capacity // classes exemplars. Herding chooses those
    of the task's classes from the examples that `end_task` gets; other classes keep their best
    ones. A class that returns is learned from labels again, from its first example on, and its
    exemplars are chosen from the old ones and the new examples.

    Deviation from the paper: the loss is the mean over the fresh batch plus the mean over the
    exemplars.

    Args:
        strength: Share of the method's loss, in [0, 1]; 1 is the method, 0 is plain training.
            Values in between mix the method's loss and the plain loss.
        capacity: Number of exemplars stored in total, at least one for each class. The paper uses
            2000 for the 100 classes of CIFAR-100.
        batch_size: Number of exemplars added to each batch, 1 or more. The paper has no such
            setting: it mixes exemplars and new examples in one training set.
        seed: Seed for choosing which exemplars are replayed, 0 or more.
    """

    name = "icarl"
    effects = frozenset({Effect.REPLACES_LOSS})
    traits: ClassVar[Traits] = Traits(
        copies=1,
        examples=True,
        one_head=True,
        class_incremental=True,
        control=False,
        several_passes=True,
        rank={"class": 6},
    )
    state = ("store", "rows", "current", "teacher", "rng")

    def __init__(
        self, strength: float = 1.0, capacity: int = 1000, batch_size: int = 64, seed: int = 0
    ) -> None:
        check_range("strength", strength, 0, 1)
        check_range("batch_size", batch_size, 1)
        self.strength = strength
        self.capacity, self.batch_size = capacity, batch_size
        self.store = Store(capacity)
        self.rows = dict[int, Rows]()  # rows of the store by class, the best exemplar first
        self.rng = np.random.default_rng(seed)
        self.teacher = Teacher()
        self.current = set[int]()  # classes seen in the current task

    def check(self, model: Model) -> None:
        check_labels(model, "icarl", "replay or derpp")
        if model.task_aware:
            raise ValueError(
                "icarl predicts among the classes of all tasks; where the task ID is given, use "
                "replay, derpp or packnet"
            )
        check_range("capacity", self.capacity, model.likelihood.size())

    def begin_task(self, task: Task, model: Model) -> None:
        self.current = set()

    def observe(self, batch: Batch, model: Model) -> None:
        if batch.target is not None:
            self.current |= set(batch.target.flatten().tolist())

    def recall(self, model: Model) -> Batch | None:
        if not self.rows:
            return None
        rows = np.concatenate(list(self.rows.values()))
        drawn = rows[self.rng.integers(0, len(rows), self.batch_size)]
        return model.augmented(self._read(drawn, model))

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        given = [part for part in (fresh, replayed) if part is not None]
        loss = self.strength * torch.stack([self._loss(part, model) for part in given]).sum()
        if fresh is not None and self.strength < 1:
            assert fresh.batch.target is not None
            plain = model.loss_of(fresh.output.prediction, fresh.batch.target)
            loss = loss + (1 - self.strength) * plain
        return loss

    def _loss(self, part: Forward, model: Model) -> Tensor:
        """Return the binary cross-entropy with labels and the old network's outputs."""
        batch, logits = part.batch, part.output.prediction
        assert batch.target is not None
        target = F.one_hot(batch.target, logits.shape[-1]).to(logits.dtype)
        if self.teacher.module is not None:
            past = sorted(set(self.rows) - self.current)
            old = torch.tensor(past, dtype=torch.long, device=logits.device)
            with torch.no_grad():
                distilled = torch.sigmoid(model.outputs(batch, self.teacher.module))
            target[..., old] = distilled[..., old]
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean()

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self._choose(model, batches)
        self.teacher.copy(model)

    def _means(self, model: Model) -> Tensor:
        """Return mu (classes, features) with the current network.

        The means of classes without exemplars are far away from all features.
        """
        with model.evaluating():
            by_class = {
                label: self._features(model, self._read(rows, model))
                for label, rows in self.rows.items()
            }
        shape = (max(by_class) + 1, model.last_layer().in_features)
        means = next(iter(by_class.values())).new_full(shape, 1e4)
        for label, features in by_class.items():
            means[label] = F.normalize(features.mean(0), dim=0)
        return means

    def _choose(self, model: Model, batches: Sequence[Batch]) -> None:
        """Keep fewer old exemplars, then choose the task's (algorithms 4 and 5)."""
        targets = [batch.target[0] for batch in batches if batch.target is not None]
        new = {label for target in targets for label in target.tolist()}
        again = [row for label in sorted(new & set(self.rows)) for row in self.rows[label]]
        batches = [*batches, self._read(np.array(again, np.int64), model)] if again else batches
        labels = torch.cat([batch.target[0] for batch in batches if batch.target is not None])
        share = self.capacity // len(new | set(self.rows))
        self.rows = {label: rows[:share] for label, rows in self.rows.items() if label not in new}
        taken = {row for rows in self.rows.values() for row in rows}
        free = sorted(set(range(self.capacity)) - taken)
        with model.evaluating():
            features = torch.cat([self._features(model, batch) for batch in batches])
        together = Batch.join(batches).to_items()
        for label in sorted(new):
            candidates = torch.nonzero(labels == label)[:, 0]
            order = herding(features[candidates], min(share, len(candidates)))
            best = candidates[order].cpu().numpy()
            rows, free = np.array(free[: len(best)], np.int64), free[len(best) :]
            self.rows[label] = rows
            self.store.write(rows, {name: value[best] for name, value in together.items()})

    def _restored(self, model: Model) -> None:
        self.teacher.restore(model)

    def _features(self, model: Model, batch: Batch) -> Tensor:
        with torch.no_grad():
            return _normalized(model.features(batch))

    def _read(self, rows: Rows, model: Model) -> Batch:
        return Batch.from_items(self.store.read(rows), model.device)

    @contextmanager
    def view(self, task: Task, model: Model) -> Iterator[None]:
        """Classify by the nearest mean of exemplars, once there are exemplars.

        Classes without exemplars, such as those of the first run through a task, are not predicted.
        """
        if not self.rows:
            yield
            return
        means = self._means(model)

        def nearest(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            guess = torch.full_like(output, FAR, dtype=means.dtype)
            with torch.autocast(output.device.type, enabled=False):
                guess[..., : len(means)] = -torch.cdist(_normalized(inputs[0]), means)
            return guess

        handle = model.last_layer().register_forward_hook(nearest)
        try:
            yield
        finally:
            handle.remove()


def _normalized(features: Tensor) -> Tensor:
    """Return phi / |phi| in single precision or better, since half would merge close means."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
