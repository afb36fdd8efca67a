"""iCaRL: exemplars by herding, distillation, nearest-class-mean classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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


class ICaRL(Strategy):
    """Classifies by the nearest class mean of stored exemplars; distils past classes' outputs.

        loss = sum over classes of BCE(sigmoid(z), t)
            t = sigmoid(z*) for classes of ended tasks only, else 1[y = class]
        guess = argmin_y || phi(x) / |phi(x)| - mu_y ||
            mu_y the mean of class y's exemplars' phi / |phi|, scaled to length 1

    Rebuffi et al. 2017, eq. 1, algorithms 1 to 5. phi(x) is the input of the network's last linear
    layer. `batch_size` exemplars of the classes of ended tasks are added to each fresh batch. At a
    task's end exemplars are chosen by herding among the examples collected there, capacity /
    classes of each class. A class that returns is learned from labels again, from its first example
    on. Its exemplars are then chosen among the old ones and the new examples.

    Deviation: the loss is a mean over the batch, and exemplars count as much as fresh examples.

    Args:
        strength: Share of the method's loss, in [0, 1]; 1 is the method, 0 is plain training. In
            between, the method's loss and the plain loss are mixed.
        capacity: Number of exemplars stored in total, at least one for each class.
        batch_size: Number of exemplars added to each batch, 1 or more.
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
    state = ("store", "rows", "brought", "teacher", "rng")

    def __init__(
        self, strength: float = 1.0, capacity: int = 1000, batch_size: int = 64, seed: int = 0
    ) -> None:
        check_range("strength", strength, 0, 1)
        check_range("batch_size", batch_size, 1)
        self.strength, self.capacity, self.batch_size = strength, capacity, batch_size
        self.store, self.rows = Store(capacity), dict[int, Rows]()  # of each class, the best first
        self.rng = np.random.default_rng(seed)
        self.teacher = Teacher()
        self.brought = set[int]()  # classes seen in the task at hand

    def check(self, model: Model) -> None:
        check_labels(model, "icarl", "replay or derpp")
        if model.task_aware:
            raise ValueError(
                "icarl predicts among the classes of all tasks; where the task ID is given, use "
                "replay, derpp or packnet"
            )
        check_range("capacity", self.capacity, model.likelihood.size())

    def begin_task(self, task: Task, model: Model) -> None:
        self.brought = set()

    def observe(self, batch: Batch, model: Model) -> None:
        if batch.target is not None:
            self.brought |= set(batch.target.flatten().tolist())

    def recall(self, model: Model) -> Batch | None:
        if not self.rows:
            return None
        known = np.concatenate(list(self.rows.values()))
        return model.augmented(
            self._read(known[self.rng.integers(0, len(known), self.batch_size)], model)
        )

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        given = [part for part in (fresh, replayed) if part is not None]
        loss = self.strength * torch.stack([self._loss(part, model) for part in given]).sum()
        if fresh is not None and self.strength < 1:
            assert fresh.batch.target is not None
            plain = model.loss_of(fresh.output.prediction, fresh.batch.target)
            loss = loss + (1 - self.strength) * plain
        return loss

    def _loss(self, part: Forward, model: Model) -> Tensor:
        """Binary cross-entropy of labels, and of the old network's outputs for past classes."""
        batch, logits = part.batch, part.output.prediction
        assert batch.target is not None
        target = F.one_hot(batch.target, logits.shape[-1]).to(logits.dtype)
        if self.teacher.module is not None:
            old = torch.tensor(
                sorted(set(self.rows) - self.brought), dtype=torch.long, device=logits.device
            )
            with torch.no_grad():
                target[..., old] = torch.sigmoid(model.outputs(batch, self.teacher.module))[
                    ..., old
                ]
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean()

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self._choose(model, batches)
        self.teacher.copy(model)

    def _means(self, model: Model) -> Tensor:
        """mu (classes known, features) as the network sees the exemplars now, far away for classes
        without any.
        """
        with model.evaluating():
            known = {
                label: self._features(model, self._read(rows, model))
                for label, rows in self.rows.items()
            }
        means = next(iter(known.values())).new_full(
            (max(known) + 1, model.last_layer().in_features), 1e4
        )
        for label, features in known.items():
            means[label] = F.normalize(features.mean(0), dim=0)
        return means

    def _choose(self, model: Model, batches: Sequence[Batch]) -> None:
        """Make room, then herd the exemplars of the classes that came into it (algorithms 4
        and 5).
        """
        came = {
            label
            for batch in batches
            if batch.target is not None
            for label in batch.target[0].tolist()
        }
        back = [row for label in sorted(came & set(self.rows)) for row in self.rows[label]]
        batches = [*batches, self._read(np.array(back, np.int64), model)] if back else batches
        labels = torch.cat([batch.target[0] for batch in batches if batch.target is not None])
        share = self.capacity // len(came | set(self.rows))
        self.rows = {label: rows[:share] for label, rows in self.rows.items() if label not in came}
        free = sorted(
            set(range(self.capacity)) - {row for rows in self.rows.values() for row in rows}
        )
        with model.evaluating():
            features = torch.cat([self._features(model, batch) for batch in batches])
        items = [
            replace(batch, action=None, output=None, value=None).to_items() for batch in batches
        ]
        together = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
        for label in sorted(came):
            candidates = torch.nonzero(labels == label)[:, 0]
            best = (
                candidates[herding(features[candidates], min(share, len(candidates)))].cpu().numpy()
            )
            self.rows[label], free = np.array(free[: len(best)], np.int64), free[len(best) :]
            self.store.write(
                self.rows[label], {name: value[best] for name, value in together.items()}
            )

    def _restored(self, model: Model) -> None:
        self.teacher.restore(model)

    def _features(self, model: Model, batch: Batch) -> Tensor:
        with torch.no_grad():
            return _normalized(model.features(batch))

    def _read(self, rows: Rows, model: Model) -> Batch:
        return Batch.from_items(self.store.read(rows), model.device)

    @contextmanager
    def view(self, task: Task, model: Model) -> Iterator[None]:
        """The nearest mean of exemplars answers in place of the last layer, once there are any."""
        if not self.rows:
            yield
            return
        means = self._means(model)

        def nearest(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            guess = torch.full_like(output, -torch.inf, dtype=means.dtype)
            with torch.autocast(output.device.type, enabled=False):
                guess[..., : len(means)] = -torch.cdist(_normalized(inputs[0]), means)
            return guess

        handle = model.last_layer().register_forward_hook(nearest)
        try:
            yield
        finally:
            handle.remove()


def _normalized(features: Tensor) -> Tensor:
    """phi / |phi|, in single precision or better: in half of it near means are the same."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
