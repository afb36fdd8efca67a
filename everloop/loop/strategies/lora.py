"""LoRA: low-rank adapters on a frozen network, one per task or merged."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import (
    Effect,
    Strategy,
    Traits,
    check_choice,
    check_new_weights,
    check_range,
)
from everloop.loop.strategies.parts.per_task import PerTask, freeze_below, head, head_weights
from everloop.loop.strategies.parts.rng import isolated_rng

ONLINE = "online"
"""Name of the adapter that is merged at each task's end."""


class LoRA(Strategy):
    """Freezes the network, and trains low-rank adapters in the linear layers below the last.

        W x + (alpha / rank) B A x,   A (rank, i), B (o, rank)       (Hu et al. 2022, section 4.1)

    W (o, i) is the weight of a linear layer. The library `peft` adds the adapters (extra `lora`). B
    starts as 0, so a new adapter does not change the outputs. The last layer and a value head are
    always trained, and everything else is frozen. With one adapter per task, the last layer is
    stored at each task's end, and a task that returns continues with its own adapter and last
    layer. Tasks of one phase share an adapter. If one of them returns alone, it continues with a
    copy.

    Memory: rank * (i + o) numbers per layer for each task.

    Args:
        rank: Rank of the adapters, 0 or more; 0 is plain training. The authors' code uses 8 for
            RoBERTa.
        alpha: Scale of the adapters, above 0. Each adapter is multiplied by alpha / rank. The
            authors' code uses 16 for RoBERTa.
        adapters: One adapter per task (task), or one merged at each task's end (online). task needs
            the task ID. online adds (alpha / rank) B A to W and starts the adapter again. Then LoRA
            must come first in a list of strategies, since strategies that store weights at a task's
            end must see the new adapter. Layers that share their weight with another layer or an
            embedding get no such adapter: W can't take up two of them.
        train_base: Train the whole network in the first task, without adapters. False trains
            adapters from the start, which suits a pre-trained network.
        seed: Seed for the initial weights of new adapters.
    """

    name = "lora"
    traits: ClassVar[Traits] = Traits(
        copies=0.1,
        grows=True,
        task_id=True,
        several_passes=True,
        without_task_id={"adapters": "online"},
    )
    state = ("tasks", "made", "adapter", "frozen", "generator")
    effects = frozenset({Effect.ADDS_WEIGHTS, Effect.FREEZES_WEIGHTS})

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        adapters: Literal["task", "online"] = "task",
        train_base: bool = True,
        seed: int = 0,
    ) -> None:
        check_range("rank", rank, 0)
        check_range("alpha", alpha, 1e-6)
        check_choice("adapters", adapters, ("task", "online"))
        self.rank, self.alpha = rank, alpha
        self.adapters, self.train_base = adapters, train_base
        self.comes_first = adapters == ONLINE
        self.generator = torch.Generator().manual_seed(seed)
        self.tasks = PerTask()  # keys: adapter's name, None without one; tensors: the last layer
        self.made: list[str] = []  # names of all adapters, in order of creation
        self.adapter: str | None = None  # name of the adapter in use; None for the bare network
        self.frozen = False  # True once the network below the last layer is frozen

    @property
    def active(self) -> bool:
        return self.rank > 0

    def check(self, model: Model) -> None:
        _peft()
        check_new_weights(model, "lora")
        if self.adapters == "task" and not model.task_aware:
            raise ValueError(
                "lora needs the task ID to choose an adapter; without it use adapters online"
            )
        self._targets(model)

    def _restored(self, model: Model) -> None:
        if self.frozen:
            freeze_below(model)
        for name in self.made:
            if name not in _adapters(model.module):
                self._inject(name, model, torch.Generator())
        if self.made:
            self._use(self.adapter, model.module)
            self._settle(model)

    def begin_task(self, task: Task, model: Model) -> None:
        if self.train_base and not self.frozen:
            return
        self._freeze(model)
        before = self.tasks.begin(task, model, resume=True)
        name = self._adapter_for(task, before)
        if name not in self.made:
            self._inject(name, model, self.generator)
            self.made.append(name)
        if before not in (None, name):
            weights = zip(
                _adapter_weights(name, model.module),
                _adapter_weights(before, model.module),
                strict=True,
            )
            with torch.no_grad():
                for new, old in weights:
                    new.copy_(old)
        self.adapter = name
        self._use(name, model.module)

    def _adapter_for(self, task: Task, before: str | None) -> str:
        """Return the name of the task's adapter: its earlier one, unless other tasks use it too."""
        if self.adapters == ONLINE:
            return ONLINE
        taken = set(self.tasks.keys.values())
        if before is not None and before not in taken:
            return before
        name = f"task_{task.id}"
        return name if name not in taken else f"{name}_{len(self.made)}"

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.tasks.end(task, self.adapter, head(model) if self.adapters == "task" else {})
        if self.adapters == ONLINE and self.adapter is not None:
            self._merge(self.adapter, model)
        self._freeze(model)
        self._settle(model)

    def _freeze(self, model: Model) -> None:
        if not self.frozen:
            freeze_below(model)
            self.frozen = True

    def _settle(self, model: Model) -> None:
        """Freeze the current adapter if its task has ended."""
        if self.adapters == "task" and self.adapter in self.tasks.keys.values():
            _set_trained(dict.fromkeys(_adapter_weights(self.adapter, model.module), False))

    def _inject(self, name: str, model: Model, generator: torch.Generator) -> None:
        """Add a new adapter to all linear layers below the last, and to the optimizer."""
        # peft would match a list by the end of names: "0" would match "2.0".
        pattern = "|".join(map(re.escape, self._targets(model)))
        config = _peft().LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=pattern)
        with isolated_rng(model, generator), warnings.catch_warnings():
            # Earlier adapters have left a `peft_config`, which is intended.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            _peft().inject_adapter_in_model(config, model.module, name)
        for p in head_weights(model):
            p.requires_grad_(True)  # peft has frozen everything except adapters
        model.add_weights(_adapter_weights(name, model.module))

    def _targets(self, model: Model) -> list[str]:
        """Return the names of the layers to adapt: linear ones below the last.

        Raises:
            ValueError: If there are none.
        """
        parts = dict(model.module.named_modules())
        owners = Counter(p for part in parts.values() for p in part._parameters.values())
        layers, heads = set(_lora_layers(model.module)), set(head_weights(model))
        linear = {
            layer
            for layer in parts.values()
            if isinstance(layer, nn.Linear)
            and layer.weight not in heads
            and not (self.adapters == ONLINE and owners[layer.weight] > 1)
        }
        names = [name for name, part in parts.items() if part in (layers or linear)]
        if not names:
            raise ValueError(
                "lora finds no linear layer below the last one; use a network that has one"
            )
        return names

    def _use(self, name: str | None, module: nn.Module) -> None:
        for layer in _lora_layers(module):
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)

    @torch.no_grad()
    def _merge(self, name: str, model: Model) -> None:
        """Add the adapter to the network's weights, and start it again.

        A is drawn again, B becomes 0, and the optimizer's state for both is removed.
        """
        with isolated_rng(model, self.generator):
            for layer in _lora_layers(model.module):
                layer.get_base_layer().weight += layer.get_delta_weight(name)
                layer.reset_lora_parameters(name, True)
        for p in _adapter_weights(name, model.module):
            model.optimizer.state.pop(p, None)

    @contextmanager
    def view(self, task: Task, model: Model) -> Iterator[None]:
        """Use the task's own adapter and last layer."""
        if task not in self.tasks or self.adapters == ONLINE:
            yield
            return
        trained = {p: p.requires_grad for p in model.module.parameters()}
        self._use(self.tasks.keys[task.id], model.module)
        try:
            with self.tasks.applied(task, model):
                yield
        finally:
            self._use(self.adapter, model.module)
            _set_trained(trained)  # peft has frozen the adapters that were not in use


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError:
        raise ValueError('lora needs the extra lora: pip install "everloop[lora]"') from None


def _lora_layers(module: nn.Module) -> list[Any]:
    return [
        layer
        for layer in module.modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight")
    ]


def _adapters(module: nn.Module) -> set[str]:
    return {name for layer in _lora_layers(module) for name in layer.lora_A}


def _adapter_weights(name: str | None, module: nn.Module) -> list[nn.Parameter]:
    return [
        part[name].weight
        for layer in _lora_layers(module)
        for part in (layer.lora_A, layer.lora_B)
        if name is not None
    ]


def _set_trained(trained: Mapping[nn.Parameter, bool]) -> None:
    for p, learns in trained.items():
        p.requires_grad_(learns)
        if not learns:
            p.grad = None
