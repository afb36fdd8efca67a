"""L2 penalty on the distance to the weights at the end of the last task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_strength
from everloop.loop.strategies.parts.quadratic import Quadratic, snapshot
from everloop.loop.strategies.parts.warning import ClassIncrementalWarning


class L2(Strategy):
    """Anchors all weights equally at their values at the last task's end.

        penalty = strength / 2 * sum_i (w_i - w*_i)^2

    w* are the weights at the last task's end. EWC is compared with this baseline by Kirkpatrick et
    al. 2017 (figure 2) and in Continual World (Wolczyk et al. 2021, section 4).

    Memory: three numbers per weight.

    Args:
        strength: Lambda, the weight of the penalty, 0 or more; 0 is plain training. Tune it; the
            default is from no paper.
    """

    name = "l2"
    traits: ClassVar[Traits] = Traits(copies=3, rank={"control": 8})
    state = ("penalty", "warning")

    def __init__(self, strength: float = 0.1) -> None:
        self.strength, self.penalty = check_strength(strength), Quadratic()
        self.warning = ClassIncrementalWarning("l2")

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        self.penalty.add_gradient(model, self.strength)

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.warning.check(model, batches)
        now = snapshot(model)
        self.penalty.move({name: torch.ones_like(w) for name, w in now.items()}, now, decay=0.0)
