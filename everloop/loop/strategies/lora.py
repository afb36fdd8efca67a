"""Low-rank adapters: each task learns a small change of a network that stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from everloop.loop.batch import Batch
from everloop.loop.strategies.base import Strategy, Traits, check_choice, check_may_grow, check_range
from everloop.loop.strategies.chance import own_draws
from everloop.loop.strategies.task_head import TaskHeads, freeze_below
from everloop.loop.world import Task

if TYPE_CHECKING:
    from everloop.loop.learner import Learner

ONLINE = "online"


class LoRA(Strategy):
    """W x + (alpha / rank) B A x in every linear layer below the last, only A (rank, i) and B (o, rank) being trained.

    Hu et al. 2022, section 4.1, by the library `peft` (extra `lora`). B begins as 0, so a new adapter changes nothing yet.

    rank: from 0. With 0 training is plain, to the last bit. alpha: of the formula, above 0.
    adapters: "task" gives each task its own, shown by `view`, which takes the task's id; "online" merges the adapter into the
        network at each task's end, W <- W + (alpha / rank) B A, and begins a new one.
    train_base: the first task trains the whole network; False from the beginning only adapters, for a network that is
        pre-trained.
    The last layer is always trained; with "task" it is kept as each task left it. All that is neither of the two is frozen.
    Memory: rank * (i + o) numbers a layer, for each task.
    """

    traits: ClassVar[Traits] = Traits(copies=0.1, grows=True, task_id=True, several_passes=True)

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
        self.frozen = False

    def check(self, learner: Learner) -> None:
        if self.rank == 0:
            return
        _peft()
        check_may_grow(learner, "lora")
        if self.adapters == "task" and not learner.told:
            raise ValueError("lora chooses an adapter by the task's id, allowed where it is not told: adapters online")

    def begin_task(self, task: Task, learner: Learner) -> None:
        if self.rank == 0 or (self.train_base and not self.names):
            return
        if not self.frozen:
            freeze_below(learner)
            self.frozen = True
        name = self.names.get(task.id) or (ONLINE if self.adapters == ONLINE else f"task_{task.id}")
        if name not in _adapters(learner.module):
            self._inject(name, learner)
        self._use(name, learner.module)

    def end_task(self, task: Task, learner: Learner, batches: Sequence[Batch]) -> None:
        if self.rank == 0:
            return
        active = _active(learner.module)
        self.names[task.id] = active
        if self.adapters == "task":
            self.heads.keep(task.id, learner)
        elif active is not None:
            self._merge(active, learner.module)

    def _inject(self, name: str, learner: Learner) -> None:
        """New adapters in all linear layers, and into the optimizer."""
        last = learner.last_layer()
        if not _lora_layers(learner.module):
            targets = [n for n, layer in learner.module.named_modules() if isinstance(layer, nn.Linear) and layer is not last]
        else:
            targets = [n for n, layer in learner.module.named_modules() if layer in _lora_layers(learner.module)]
        if not targets:
            raise ValueError("lora finds no linear layer below the last one, allowed: networks that have one")
        config = _peft().LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets)
        with own_draws(learner, self.generator), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # of the tasks before
            _peft().inject_adapter_in_model(config, learner.module, name)
        for p in last.parameters():
            p.requires_grad_(True)  # injecting freezes all that is no adapter
        learner.add_weights(_adapter_weights(name, learner.module))

    def _use(self, name: str | None, module: nn.Module) -> None:
        for layer in _lora_layers(module):
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)

    @torch.no_grad()
    def _merge(self, name: str, module: nn.Module) -> None:
        """The adapter becomes part of the network, and begins anew."""
        for layer in _lora_layers(module):
            layer.get_base_layer().weight += layer.get_delta_weight(name)
            layer.lora_B[name].weight.zero_()

    @contextmanager
    def view(self, task: Task, learner: Learner) -> Iterator[None]:
        """The task's own adapter and head."""
        if task.id not in self.names or self.adapters == ONLINE:
            yield
            return
        active, trained = _active(learner.module), [p for p in learner.module.parameters() if p.requires_grad]
        self._use(self.names[task.id], learner.module)
        try:
            with self.heads.shown(task.id, learner):
                yield
        finally:
            self._use(active, learner.module)
            for p in trained:  # choosing an adapter freezes the others
                p.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        own = {"names": dict(self.names), "frozen": self.frozen, "generator": self.generator.get_state()}
        return own | {"heads": self.heads.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.frozen = dict(state["names"]), state["frozen"]
        self.generator.set_state(state["generator"])
        self.heads.load_state_dict(state["heads"])


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError:
        raise ValueError('lora needs the extra lora: pip install "everloop[lora]"') from None


def _lora_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight")]


def _adapters(module: nn.Module) -> set[str]:
    return {name for layer in _lora_layers(module) for name in layer.lora_A}


def _active(module: nn.Module) -> str | None:
    """The adapter in use."""
    layers = _lora_layers(module)
    return None if not layers or layers[0].disable_adapters else str(layers[0].active_adapters[0])


def _adapter_weights(name: str, module: nn.Module) -> list[nn.Parameter]:
    return [part[name].weight for layer in _lora_layers(module) for part in (layer.lora_A, layer.lora_B)]
