"""GDumb: stores examples; at each task's end trains from scratch on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from everloop.contract import KeepsStatistics, Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Forward, Traits, check_range
from everloop.loop.strategies.parts.rehearsal import Rehearsal, check_labels


class GDumb(Rehearsal):
    """Stores examples, and trains from scratch on the memory at each task's end.

    Prabhu et al. 2020. Its score shows how much of a method's accuracy is due to its memory. During
    a task the network is not trained. At the task's end it starts from the weights that it had
    before the first task. It is trained by stochastic gradient descent with a cosine schedule of
    the learning rate (section 3, "Implementation details": 0.05 to 0.0005, batches of 16). The
    statistics of batch norms come only from the memory; those of the observations, by which a
    network normalises them, from the stream, as for other strategies.

    Differs from the authors' code: the rate falls once over all updates. There it falls within
    cycles of 1, 2, 4, ... passes, after a pass at a tenth of the rate (warm restarts, Loshchilov &
    Hutter 2017), in 256 passes. The memory keeps a uniform sample of each class instead of its
    first examples, and cutmix is not used.

    Args:
        epochs: Passes over the memory at each task's end, 0 or more; 0 is plain training. The
            authors' code uses 256, which takes 8 times as long as 30.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples in each update at a task's end, 1 or more. 16 is the
            paper's.
        learning_rate: Initial learning rate at each task's end, above 0. It falls along a cosine to
            1 % of this value. 0.05 is the paper's.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored, and for their order, 0 or more.
    """

    name = "gdumb"
    traits: ClassVar[Traits] = Traits(
        copies=1, examples=True, class_incremental=True, control=False, rank={"class": 7}
    )
    effects = frozenset({Effect.REPLACES_LOSS, Effect.RESETS_WEIGHTS})
    state = ("initial", "buffers", "modes")

    def __init__(
        self,
        epochs: int = 30,
        capacity: int = 1000,
        batch_size: int = 16,
        learning_rate: float = 0.05,
        memory: str = "class-balanced",
        seed: int = 0,
    ) -> None:
        check_range("epochs", epochs, 0)
        check_range("learning_rate", learning_rate, 1e-12)
        super().__init__(1.0 if epochs else 0.0, capacity, batch_size, memory, seed)
        self.epochs, self.learning_rate = epochs, learning_rate
        self.initial: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}  # statistics of norms before the task
        self.modes: dict[str, bool] = {}  # True for parts that are in training mode while it learns

    def check(self, model: Model) -> None:
        if not model.labelled:
            raise ValueError("gdumb needs labels; in control use replay")
        if self.memory.group_by == "target":
            check_labels(model, "gdumb with class-balanced memory", "memory reservoir")
        super().check(model)

    def begin_task(self, task: Task, model: Model) -> None:
        super().begin_task(task, model)
        if not self.initial:
            self.initial = {
                name: value.clone() for name, value in model.module.state_dict().items()
            }
        kept = observed_statistics(model.module)
        self.buffers = {
            name: value.clone() for name, value in model.module.named_buffers() if name not in kept
        }
        self.modes = {}

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        """Return the task loss without a graph, so that the stream trains nothing."""
        if fresh is None or fresh.batch.target is None:
            return None
        return model.loss_of(fresh.output.prediction.detach(), fresh.batch.target)

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        for p in model.weights().values():
            p.grad = None  # an optimizer does not change weights without a gradient

    @torch.no_grad()
    def after_step(self, batch: Batch, model: Model) -> None:
        if not self.modes:
            self.modes = {name: part.training for name, part in model.module.named_modules()}
        # The forward passes on the stream have changed the statistics of norms.
        for name, value in model.module.named_buffers() if self.buffers else ():
            if name in self.buffers:
                value.copy_(self.buffers[name])

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        super().end_task(task, batches, model)
        if not len(self.memory):
            return
        before = {part: part.training for part in model.module.modules()}
        model.module.load_state_dict({**self.initial, **observed_statistics(model.module)})
        # A frozen norm stays in evaluation mode, as in the task.
        for name, part in model.module.named_modules():
            part.training = self.modes.get(name, True)
        weights = list(model.weights().values())
        optimizer = torch.optim.SGD(
            weights, self.learning_rate, momentum=0.9, weight_decay=1e-6, fused=True
        )
        steps = self.epochs * -(-len(self.memory) // self.batch_size)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, steps, self.learning_rate / 100
        )
        for _ in range(self.epochs):
            order = self.memory.rng.permutation(len(self.memory))
            for rows in np.array_split(order, -(-len(order) // self.batch_size)):
                optimizer.zero_grad()
                loss = model.loss(model.augmented(self.read(rows, model)))
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(weights, 10.0)
                optimizer.step()
                model.tally.updates += 1
                model.tally.presentations += len(rows)
                rate.step()
        for part, training in before.items():
            part.training = training
        for p in weights:
            p.grad = None


def observed_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the statistics of observations in `module`, by all names of their buffers.

    The statistics of a batch norm are left out, because forward passes change them.
    """
    found = module.named_modules(remove_duplicate=False)
    places = [place for place, network in found if isinstance(network, KeepsStatistics)]
    return {
        f"{place}.{name}".lstrip("."): value
        for outer in places
        for place, part in module.get_submodule(outer).named_modules(
            prefix=outer, remove_duplicate=False
        )
        if not isinstance(part, nn.modules.batchnorm._NormBase)
        for name, value in part.named_buffers(recurse=False)
    }
