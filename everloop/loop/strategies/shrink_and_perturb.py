"""Shrink and perturb: before each task, shrinks weights and adds noise."""

from __future__ import annotations

from typing import ClassVar

import torch

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range
from everloop.loop.strategies.parts.rng import isolated_rng


class ShrinkAndPerturb(Strategy):
    """Preserves plasticity by shrinking weights and adding noise before each new task.

        w <- shrink * w + noise * w_fresh                      (Ash & Adams 2020, section 4)

    w_fresh are new initial weights, drawn by each layer's method `reset_parameters`. A layer
    without that method is only shrunk. The optimizer's state is unchanged. Tasks that are learned
    together count as one task.

    Args:
        shrink: Factor on the weights before each new task, in [0, 1]; 1 leaves them unchanged. The
            authors' code uses 0.4, but it goes on learning all earlier examples.
        noise: Factor on the fresh weights that are added, 0 or more; 0 adds none. The authors' code
            uses 0.1.
        seed: Seed for the fresh weights.
    """

    name = "shrink_and_perturb"
    traits: ClassVar[Traits] = Traits(plasticity=True)
    state = ("learned", "generator")

    def __init__(self, shrink: float = 0.8, noise: float = 0.1, seed: int = 0) -> None:
        check_range("shrink", shrink, 0, 1)
        check_range("noise", noise, 0, 1e6)
        self.shrink, self.noise = shrink, noise
        self.generator = torch.Generator().manual_seed(seed)
        self.learned = False  # True if there was an update since the weights last shrank

    @property
    def active(self) -> bool:
        return self.shrink < 1 or self.noise > 0

    @torch.no_grad()
    def begin_task(self, task: Task, model: Model) -> None:
        if not self.learned:
            return
        self.learned = False
        fresh = model.frozen_copy()
        for p in fresh.parameters():
            p.zero_()
        with isolated_rng(model, self.generator):
            for layer in fresh.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
        drawn = dict(fresh.named_parameters())
        for name, w in model.weights().items():
            w.mul_(self.shrink).add_(drawn[name], alpha=self.noise)

    def after_step(self, batch: Batch, model: Model) -> None:
        self.learned = True
