"""The last layer as each task left it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from everloop.loop.learner import Learner


def freeze_below(learner: Learner) -> None:
    """From now on only the last layer is trained, and what comes anew."""
    last = set(learner.last_layer().parameters())
    for p in learner.module.parameters():
        if p not in last:
            p.requires_grad_(False)
            p.grad = None


class TaskHeads:
    """Keeps the last layer at every task's end, and puts it back where the task is evaluated.

    Where all tasks share one linear layer for their heads, an optimizer's moments go on to move a head after its task.
    """

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Tensor]] = {}  # task id -> weight and bias

    def keep(self, task: int, learner: Learner) -> None:
        """Now is how `task`'s head is to be."""
        self.kept[task] = {name: p.detach().clone() for name, p in learner.last_layer().named_parameters()}

    @contextmanager
    def shown(self, task: int, learner: Learner) -> Iterator[None]:
        """The last layer as it was at the end of `task`; as it is, if that has not ended."""
        if task not in self.kept:
            yield
            return
        layer = dict(learner.last_layer().named_parameters())
        now = {name: p.detach().clone() for name, p in layer.items()}
        self._load(layer, self.kept[task])
        try:
            yield
        finally:
            self._load(layer, now)

    @staticmethod
    @torch.no_grad()
    def _load(layer: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, p in layer.items():
            p.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = dict(state["kept"])
