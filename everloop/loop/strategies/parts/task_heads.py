"""The last layer as each task left it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from everloop.loop.model import Model
from everloop.loop.state import Stateful


def freeze_below(model: Model) -> None:
    """From now on only the last layer and a value head are trained, and what comes anew."""
    heads = set(head_weights(model))
    for p in model.module.parameters():
        if p not in heads:
            p.requires_grad_(False)
            p.grad = None


def head_weights(model: Model) -> list[nn.Parameter]:
    """Of the last layer and, in control, the value head, on which no output depends."""
    value = [p for name, p in model.module.named_parameters() if name.startswith("value")]
    return [*model.last_layer().parameters(), *value]


class TaskHeads(Stateful):
    """Keeps the last layer at every task's end, and puts it back where the task is evaluated.

    Where all tasks share one linear layer for their heads, an optimizer's moments go on to move a
    head after its task.
    """

    state = ("kept",)

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Tensor]] = {}  # task id -> weight and bias

    def keep(self, task: int, model: Model) -> None:
        """Now is how `task`'s head is to be."""
        self.kept[task] = {
            name: p.detach().clone() for name, p in model.last_layer().named_parameters()
        }

    def forget(self, task: int) -> None:
        """`task` is learned again: its head is the one that is trained now."""
        self.kept.pop(task, None)

    def resume(self, task: int, model: Model) -> None:
        """`task` is learned again, from the head that it had."""
        if task in self.kept:
            self._load(dict(model.last_layer().named_parameters()), self.kept.pop(task))

    @contextmanager
    def shown(self, task: int, model: Model) -> Iterator[None]:
        """The last layer as it was at the end of `task`; as it is, if that has not ended."""
        if task not in self.kept:
            yield
            return
        layer = dict(model.last_layer().named_parameters())
        now = {name: p.detach().clone() for name, p in layer.items()}
        self._load(layer, self.kept[task])
        try:
            yield
        finally:
            self._load(layer, now)

    @staticmethod
    @torch.no_grad()
    def _load(layer: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, p in layer.items():
            p.copy_(values[name])
