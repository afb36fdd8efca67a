"""L2 penalty towards the initial weights, which preserves plasticity."""

from __future__ import annotations

from typing import ClassVar

import torch

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_strength
from everloop.loop.strategies.parts.quadratic import Quadratic


class L2Init(Strategy):
    """Preserves plasticity with a penalty on the distance to the initial weights.

        penalty = strength * sum_i (w_i - w0_i)^2
                                      (Kumar et al. 2023, "regenerative regularization", eq. 1)

    w0 are the initial weights. Units that are no longer useful return to their initial weights,
    from which they can learn again.

    Memory: two copies of the weights.

    Args:
        strength: Lambda, the weight of the penalty, 0 or more; 0 is plain training. The paper tries
            powers of ten from 1e-5 to 1e-2.
    """

    name = "l2_init"
    traits: ClassVar[Traits] = Traits(boundaries=False, copies=2, plasticity=True)
    state = ("penalty",)

    def __init__(self, strength: float = 1e-3) -> None:
        self.strength, self.penalty = check_strength(strength), Quadratic()

    def begin_task(self, task: Task, model: Model) -> None:
        self._anchor_new(model)

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        self._anchor_new(model)  # weights can be added at any time, here before their first step
        self.penalty.add_gradient(model, 2 * self.strength)

    def _anchor_new(self, model: Model) -> None:
        new = {
            name: p.detach().clone()
            for name, p in model.weights().items()
            if name not in self.penalty.anchor
        }
        self.penalty.move({name: torch.ones_like(w) for name, w in new.items()}, new)
