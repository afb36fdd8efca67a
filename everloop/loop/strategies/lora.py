"""LoRA: low-rank adapters on a frozen network, one per task or merged."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.strategies.base import Strategy, Traits, check_choice, check_first, check_may_grow, check_range
from everloop.loop.strategies.parts.rng import own_draws
from everloop.loop.strategies.parts.task_heads import TaskHeads, check_may_freeze, freeze_below, head_weights

if TYPE_CHECKING:
    from everloop.loop.learners.learner import Learner

ONLINE = "online"


class LoRA(Strategy):
    """Trains low-rank adapters in every linear layer below the last; the network itself is frozen.

        W x + (alpha / rank) B A x,   A (rank, i), B (o, rank)       (Hu et al. 2022, section 4.1)

    By the library `peft` (extra `lora`). B starts as 0, so a new adapter does not change the
    outputs. The last layer and a value head are always trained. With one adapter per task, the last
    layer is stored at each task's end. Everything else is frozen. A task that returns continues
    with its own adapter and last layer. Tasks of one phase share an adapter; one of them that
    returns alone gets a copy.

    Memory: rank * (i + o) numbers a layer, for each task.

    Args:
        rank: Rank of the adapters, 0 or more; 0 is plain training.
        alpha: Scale of the adapters, above 0; each is multiplied by alpha / rank.
        adapters: One adapter per task (task), or one merged at each task's end (online). task needs
            the task ID. online adds (alpha / rank) B A to W and restarts the adapter. It must then
            come first in a list of strategies, so that those that store weights at a task's end
            store the new adapter's.
        train_base: Train the whole network in the first task, before any adapter. False trains
            adapters from the start, for a pre-trained network.
        seed: Seed for the initial weights of new adapters.
    """

    name = "lora"
    traits: ClassVar[Traits] = Traits(copies=0.1, grows=True, task_id=True, several_passes=True)
    state = ("names", "made", "adapter", "frozen", "heads", "generator")
    adds_weights = True

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
        self.rank, self.alpha, self.adapters, self.train_base = rank, alpha, adapters, train_base
        self.generator = torch.Generator().manual_seed(seed)
        self.heads = TaskHeads()
        self.names: dict[int, str | None] = {}  # task id -> its adapter; None: the bare network
        self.made: list[str] = []  # the adapters, in the order in which they came
        self.adapter: str | None = None
        self.frozen = False

    @property
    def active(self) -> bool:
        return self.rank > 0

    def check(self, learner: Learner) -> None:
        _peft()
        check_may_grow(learner, "lora")
        check_may_freeze(learner, "lora")
        if self.adapters == "task" and not learner.told:
            raise ValueError("lora chooses an adapter by the task's id, allowed where it is not told: adapters online")
        if self.adapters == ONLINE:
            check_first(self, "lora with adapters online", learner)
        _targets(learner)

    def _restored(self, learner: Learner) -> None:
        if self.frozen:
            freeze_below(learner)
        for name in self.made:
            if name not in _adapters(learner.module):
                self._inject(name, learner, torch.Generator())
        if self.made:
            self._use(self.adapter, learner.module)
            self._settle(learner)

    def begin_task(self, task: Task, learner: Learner) -> None:
        if self.train_base and not self.frozen:
            return
        self._freeze(learner)
        before = self.names.pop(task.id, None)
        name = self._adapter_for(task, before)
        self.heads.resume(task.id, learner)
        if name not in self.made:
            self._inject(name, learner, self.generator)
            self.made.append(name)
        if before not in (None, name):
            weights = zip(_adapter_weights(name, learner.module), _adapter_weights(before, learner.module), strict=True)
            with torch.no_grad():
                for new, old in weights:
                    new.copy_(old)
        self.adapter = name
        self._use(name, learner.module)

    def _adapter_for(self, task: Task, before: str | None) -> str:
        """The one that the task had `before`, unless other tasks keep it."""
        if self.adapters == ONLINE:
            return ONLINE
        kept = set(self.names.values())
        own = f"task_{task.id}" if f"task_{task.id}" not in kept else f"task_{task.id}_{len(self.made)}"
        return own if before is None or before in kept else before

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        self.names[task.id] = self.adapter
        if self.adapters == "task":
            self.heads.keep(task.id, learner)
        elif self.adapter is not None:
            self._merge(self.adapter, learner)
        self._freeze(learner)
        self._settle(learner)

    def _freeze(self, learner: Learner) -> None:
        if not self.frozen:
            freeze_below(learner)
            self.frozen = True

    def _settle(self, learner: Learner) -> None:
        """An adapter whose task has ended stays as it is."""
        if self.adapters == "task" and self.adapter in self.names.values():
            _set_trained(dict.fromkeys(_adapter_weights(self.adapter, learner.module), False))

    def _inject(self, name: str, learner: Learner, generator: torch.Generator) -> None:
        """New adapters in all linear layers, and into the optimizer."""
        exactly = "|".join(map(re.escape, _targets(learner)))  # a list would be one of endings: "0" of "2.0"
        config = _peft().LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=exactly)
        with own_draws(learner, generator), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # of the tasks before
            _peft().inject_adapter_in_model(config, learner.module, name)
        for p in head_weights(learner):
            p.requires_grad_(True)  # injecting freezes all that is no adapter
        learner.add_weights(_adapter_weights(name, learner.module))

    def _use(self, name: str | None, module: nn.Module) -> None:
        for layer in _lora_layers(module):
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)

    @torch.no_grad()
    def _merge(self, name: str, learner: Learner) -> None:
        """The adapter becomes part of the network, and begins anew: A drawn, B 0, the optimizer's state for them gone."""
        with own_draws(learner, self.generator):
            for layer in _lora_layers(learner.module):
                layer.get_base_layer().weight += layer.get_delta_weight(name)
                layer.reset_lora_parameters(name, True)
        for p in _adapter_weights(name, learner.module):
            learner.optimizer.state.pop(p, None)

    @contextmanager
    def view(self, task: Task, learner: Learner) -> Iterator[None]:
        """The task's own adapter and head."""
        if task.id not in self.names or self.adapters == ONLINE:
            yield
            return
        trained = {p: p.requires_grad for p in learner.module.parameters()}
        self._use(self.names[task.id], learner.module)
        try:
            with self.heads.shown(task.id, learner):
                yield
        finally:
            self._use(self.adapter, learner.module)
            _set_trained(trained)  # choosing an adapter freezes the others


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError:
        raise ValueError('lora needs the extra lora: pip install "everloop[lora]"') from None


def _targets(learner: Learner) -> list[str]:
    """Names of the linear layers below the last one. Raises ValueError without any."""
    layers, heads = set(_lora_layers(learner.module)), set(head_weights(learner))
    linear = {layer for layer in learner.module.modules() if isinstance(layer, nn.Linear) and layer.weight not in heads}
    names = [name for name, layer in learner.module.named_modules() if layer in (layers or linear)]
    if not names:
        raise ValueError("lora finds no linear layer below the last one, allowed: networks that have one")
    return names


def _lora_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight")]


def _adapters(module: nn.Module) -> set[str]:
    return {name for layer in _lora_layers(module) for name in layer.lora_A}


def _adapter_weights(name: str | None, module: nn.Module) -> list[nn.Parameter]:
    return [part[name].weight for layer in _lora_layers(module) for part in (layer.lora_A, layer.lora_B) if name is not None]


def _set_trained(trained: Mapping[nn.Parameter, bool]) -> None:
    for p, learns in trained.items():
        p.requires_grad_(learns)
        if not learns:
            p.grad = None
