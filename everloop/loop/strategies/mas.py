"""Memory aware synapses (MAS): a penalty weighted by output sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from einops import reduce
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch, subsample
from everloop.loop.importance.per_example import mean_powers
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range, check_strength
from everloop.loop.strategies.parts.quadratic import Quadratic, snapshot
from everloop.loop.strategies.parts.warning import ClassIncrementalWarning


class MAS(Strategy):
    """Anchors each weight in proportion to how much the network's outputs change with it.

        penalty = strength * sum_i Omega_i (w_i - w*_i)^2          (Aljundi et al. 2018, eq. 4)
        Omega_i = sum over tasks of the mean over examples of | d |f(x)|^2 / d w_i |      (eq. 3)

    w* are the weights at the last task's end. Labels are not needed. Omega is a mean of absolute
    per-example gradients, so it does not depend on the batch size.

    Memory: three numbers per weight, for any number of tasks.

    Args:
        strength: Lambda, the weight of the penalty, 0 or more; 0 is plain training. 1 is the
            authors', for recognizing objects.
        examples: Examples per finished task for estimating the importance, 1 or more.
    """

    name = "mas"
    traits: ClassVar[Traits] = Traits(copies=3, rank={"control": 6, "other": 8})
    state = ("penalty", "warning")

    def __init__(self, strength: float = 1.0, examples: int = 512) -> None:
        check_range("examples", examples, 1)
        self.strength, self.examples = check_strength(strength), examples
        self.penalty, self.warning = Quadratic(), ClassIncrementalWarning("mas")

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        self.penalty.add_gradient(model, 2 * self.strength)

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        def squared_norm(batch: Batch) -> Tensor:
            squares, tagged = model.outputs(batch) ** 2, model.tagged(batch.target)
            if tagged is not None:  # padding does not count
                by_token = reduce(squares, "t b (l c) -> t b l", "sum", l=tagged.shape[-1])
                squares = by_token * tagged
            return squares.sum((0, 2))[None]

        self.warning.check(model, batches)
        importance = mean_powers(model, subsample(batches, self.examples), squared_norm, 1)
        self.penalty.move(importance, snapshot(model))
