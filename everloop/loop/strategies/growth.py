"""Network growth: adds hidden units while the loss stays high."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Strategy, Traits, check_range
from everloop.loop.strategies.parts.rehearsal import observed_output
from everloop.loop.strategies.parts.rng import isolated_rng


class Growth(Strategy):
    """Adds `units` hidden units whenever the mean loss of `patience` batches exceeds `threshold`.

    This is the idea of dynamically expandable networks (Yoon et al. 2018, section 3.2), which
    expand if the loss stays above a threshold. Their sparsity and splitting are not included.

    The network must have a part with `branches` and `add_capacity(units)`, such as
    `everloop.agents.GrowingMLP`. `add_capacity` returns a new branch and leaves the outputs
    unchanged. Growth does not prevent forgetting, so combine it with a strategy that does.

    Args:
        units: Hidden units added at a time, 0 or more; 0 is plain training. The defaults are our
            own, since Yoon et al. expand in another way.
        threshold: Mean loss above which the network grows, in nats, 0 or more.
        patience: Batches over which the loss is averaged before each decision, 1 or more.
        limit: Maximum number of times that units are added in a run, 0 or more; 0 is plain
            training.
        seed: Seed for the weights of new units.
    """

    name = "growth"
    traits: ClassVar[Traits] = Traits(
        boundaries=False, control=False, network="growing", plasticity=True
    )
    state = ("losses", "grown", "generator")
    effects = frozenset({Effect.ADDS_WEIGHTS})

    def __init__(
        self,
        units: int = 64,
        threshold: float = 0.3,
        patience: int = 100,
        limit: int = 10,
        seed: int = 0,
    ) -> None:
        check_range("units", units, 0)
        check_range("threshold", threshold, 0)
        check_range("patience", patience, 1)
        check_range("limit", limit, 0)
        self.units, self.threshold = units, threshold
        self.patience, self.limit = patience, limit
        self.generator = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []
        self.grown = 0

    @property
    def active(self) -> bool:
        return self.units > 0 and self.limit > 0

    def check(self, model: Model) -> None:
        _growing(model.module)
        if not model.labelled:
            raise ValueError("growth needs the loss of labels; in control use progressive")

    def _restored(self, model: Model) -> None:
        while self.grown > len(_growing(model.module).branches):
            self._grow(model, torch.Generator())

    def begin_task(self, task: Task, model: Model) -> None:
        self.losses = []

    def observe(self, batch: Batch, model: Model) -> None:
        if self.grown == self.limit or batch.target is None:
            return
        output = observed_output(batch, model)
        self.losses.append(float(model.loss_of(output, batch.target)))
        if len(self.losses) < self.patience:
            return
        if sum(self.losses) / len(self.losses) > self.threshold:
            self._grow(model, self.generator)
            self.grown += 1
            model.on_log({"growth/units": float(self.grown * self.units)})
        self.losses = []

    def _grow(self, model: Model, generator: torch.Generator) -> None:
        with isolated_rng(model, generator):
            model.add_weights(list(_growing(model.module).add_capacity(self.units).parameters()))


def _growing(module: nn.Module) -> Any:
    """Return the part of the network that can grow."""
    for part in module.modules():
        if hasattr(part, "add_capacity"):
            return part
    raise ValueError("growth needs a network that can grow; use architecture growing")
