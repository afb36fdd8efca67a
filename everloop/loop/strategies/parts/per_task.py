"""A store of keys and tensors per task, for the task's evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from everloop.contract import Task
from everloop.loop.model import Model
from everloop.loop.state import Stateful


class PerTask(Stateful):
    """A key and tensors of the network for each ended task.

    A key is, for example, the name of the task's adapter. When a task returns, it is learned again,
    so its entry is removed until the task ends again.
    """

    state = ("keys", "tensors")

    def __init__(self) -> None:
        self.keys: dict[int, Any] = {}  # by task ID
        self.tensors: dict[int, dict[str, Tensor]] = {}  # by task ID, then by name

    def __contains__(self, task: Task) -> bool:
        return task.id in self.keys

    def begin(self, task: Task, model: Model, resume: bool = False) -> Any | None:
        """Remove the entry of a task that returns; return its key, or None.

        Args:
            task: The task that begins.
            model: The model that learns it.
            resume: Load the task's stored tensors into the network.
        """
        tensors = self.tensors.pop(task.id, {})
        if resume:
            _load(_named(model.module), tensors)
        return self.keys.pop(task.id, None)

    def end(self, task: Task, key: Any, tensors: Mapping[str, Tensor]) -> None:
        """Store the key and copies of the tensors for a task that has ended."""
        self.keys[task.id] = key
        self.tensors[task.id] = {name: value.detach().clone() for name, value in tensors.items()}

    @contextmanager
    def applied(self, task: Task, model: Model) -> Iterator[None]:
        """Put the tensors stored for `task` into the network while the context lasts."""
        with substituted(model.module, self.tensors.get(task.id, {})):
            yield


@contextmanager
def substituted(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace parameters and buffers by `values`, by name, while the context lasts."""
    own = _named(module)
    before = {name: own[name].detach().clone() for name in values}
    _load(own, values)
    try:
        yield
    finally:
        _load(own, before)


def head(model: Model) -> dict[str, Tensor]:
    """Return the last layer's weights by name.

    If the heads of all tasks are rows of one linear layer, the optimizer's moments keep moving a
    head after its task has ended. So strategies store the layer for each task.
    """
    weights = set(model.last_layer().parameters())
    return {name: p for name, p in model.module.named_parameters() if p in weights}


def freeze_below(model: Model) -> None:
    """Freeze all weights except the last layer and a value head. Later weights are trained."""
    heads = set(head_weights(model))
    for p in model.module.parameters():
        if p not in heads:
            p.requires_grad_(False)
            p.grad = None


def head_weights(model: Model) -> list[nn.Parameter]:
    """Return the parameters of the last layer and, in control, of the value head."""
    value = [p for name, p in model.module.named_parameters() if name.startswith("value")]
    return [*model.last_layer().parameters(), *value]


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def _load(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].copy_(value)
