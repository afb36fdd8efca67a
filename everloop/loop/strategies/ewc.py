"""Elastic weight consolidation (EWC): a Fisher-weighted quadratic penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from everloop.contract import Task
from everloop.loop.batch import Batch, subsample
from everloop.loop.importance.fisher import check_exact, diagonal_fisher
from everloop.loop.model import Model
from everloop.loop.strategies.base import (
    Strategy,
    Traits,
    check_choice,
    check_range,
    check_strength,
)
from everloop.loop.strategies.parts.quadratic import Quadratic, snapshot
from everloop.loop.strategies.parts.rng import generator_for
from everloop.loop.strategies.parts.warning import ClassIncrementalWarning


class EWC(Strategy):
    """Anchors each weight in proportion to how much the likelihood of past tasks depends on it.

        penalty = strength / 2 * sum_k sum_i F_ki (w_i - w*_ki)^2
                                                      (Kirkpatrick et al. 2017, eq. 3)

    F_k is the diagonal Fisher information at the end of task k, and w*_k are the weights there. The
    gradient is added in closed form. A sum of quadratics is one quadratic up to a constant, so two
    numbers per weight are enough for all tasks:

        grad += strength * P * (w - c)
        separate:  c <- (P c + F w*) / (P + F),  P <- P + F    exactly the sum above
        online:    c <- w*,  P <- decay * P + F,  and the gradient has decay * P in place of P
                   (Schwarz et al. 2018, eq. 9 and section 3.2)
        proximal:  w <- (w + lr strength P c) / (1 + lr strength P)
                   after the optimizer's step, in place of the gradient

    Weights that the likelihood does not depend on, such as a value head's, are not anchored.

    Memory: three numbers per weight, for any number of tasks.

    Args:
        strength: Lambda, the weight of the penalty, 0 or more; 0 is plain training. Tune it: the
            code of Lopez-Paz & Ranzato (2017) uses 1 to 1000, chosen for each data set. The default
            was not checked against the paper.
        anchors: Anchors of past tasks: separate (one for each task) or online (the latest one).
            separate is the sum over all tasks. online keeps the latest weights and a decaying sum
            of the Fisher information.
        decay: Factor on earlier Fisher information with online anchors, in [0, 1]; 0 is plain
            training. With separate anchors it must be 1. The paper calls it gamma.
        fisher: Labels or actions for the Fisher information: sampled, empirical or exact. sampled
            draws them from the model, empirical takes them from the data, and exact averages over
            all classes with the model's probabilities.
        proximal: Apply the penalty as a proximal step after the optimizer's step. For any strength
            it ends between w and c, and Adam does not rescale it. A gradient step diverges if
            lr * strength * P > 2.
        examples: Examples per finished task for estimating the Fisher information, 1 or more.
        seed: Seed for labels or actions sampled from the model.
    """

    name = "ewc"
    traits: ClassVar[Traits] = Traits(copies=3, rank={"control": 5, "other": 7})
    state = ("penalty", "generator", "warning")

    def __init__(
        self,
        strength: float = 100.0,
        anchors: Literal["separate", "online"] = "separate",
        decay: float = 1.0,
        fisher: Literal["sampled", "empirical", "exact"] = "sampled",
        proximal: bool = False,
        examples: int = 512,
        seed: int = 0,
    ) -> None:
        check_choice("anchors", anchors, ("separate", "online"))
        check_choice("fisher", fisher, ("sampled", "empirical", "exact"))
        check_range("decay", decay, 0, 1)
        if anchors == "separate" and decay != 1:
            raise ValueError(f"decay is {decay}, but separate anchors don't decay; use online ones")
        check_range("examples", examples, 1)
        self.strength = check_strength(strength)
        self.anchors, self.decay = anchors, decay
        self.fisher, self.examples = fisher, examples
        self.proximal = proximal
        self.generator = torch.Generator().manual_seed(seed)
        self.penalty = Quadratic()  # P and c
        self.warning = ClassIncrementalWarning("ewc")

    @property
    def active(self) -> bool:
        return self.strength * self.decay > 0

    def check(self, model: Model) -> None:
        if self.fisher == "exact":
            check_exact(model)

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        if not self.proximal:
            self.penalty.add_gradient(model, self.strength * self.decay)

    def after_step(self, batch: Batch, model: Model) -> None:
        if self.proximal:
            self.penalty.proximal_step(model, self.strength * self.decay)

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.warning.check(model, batches)
        taken = subsample(batches, self.examples)
        fisher = diagonal_fisher(model, taken, self._draws(model), exact=self.fisher == "exact")
        if self.anchors == "online":
            self.penalty.move(fisher, snapshot(model), self.decay)
        else:
            self.penalty.add(fisher, snapshot(model))

    def _draws(self, model: Model) -> torch.Generator | None:
        """Return a generator on the model's device; None unless labels are sampled."""
        if self.fisher != "sampled":
            return None
        return generator_for(model, self.generator)
