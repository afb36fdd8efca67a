"""Riemannian walk (RWalk): online Fisher information plus path importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.importance.fisher import diagonal_fisher
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range, check_strength
from everloop.loop.strategies.parts.path_integral import PathIntegral
from everloop.loop.strategies.parts.quadratic import Quadratic, snapshot
from everloop.loop.strategies.parts.rng import generator_for
from everloop.loop.strategies.parts.warning import ClassIncrementalWarning


class RWalk(Strategy):
    """Combines online Fisher information, as in EWC, with path importance, as in SI.

        penalty = strength * sum_i (F_i + s_i) (w_i - w*_i)^2      (Chaudhry et al. 2018, eq. 8)
        F <- alpha * F of the current batch + (1 - alpha) * F, every `interval` updates
                                                                   (section 4.1)
        s_i = sum over intervals of max(0, omega_i) / (F_i Delta_i^2 / 2 + epsilon)      (eq. 6)

    omega_i is the share of weight i in the decrease of the loss over an interval, and Delta_i is
    the change of the weight. F_i Delta_i^2 / 2 is the distance in the space of the model's
    distributions. At a task's end F and s are scaled to at most 1, and s is averaged with the s of
    earlier tasks (section 4.3).

    Differs from the authors' code: F is a mean of squared per-example gradients with labels sampled
    from the model, on the first batch of an interval; there it is the mean over the interval of
    squared batch gradients with the labels of the data. The distance has the factor 1/2 of eq. 6,
    which the code leaves out. s is scaled first and then averaged with its past, (past + s) / 2 as
    in section 4.3; the code adds that mean to its past and scales the sum. Scaling divides by the
    largest value; the code maps the smallest to 0 as well.

    Memory: ten numbers per weight, for any number of tasks.

    Args:
        strength: Lambda, the weight of the penalty, 0 or more; 0 is plain training. The code of
            Chaudhry et al. 2019 uses 1.
        interval: Updates between two estimates of the Fisher information, 1 or more. The authors'
            code uses 50 on CIFAR-100 and 10 on MNIST.
        alpha: Weight of the new estimate in the moving average of F, in [0, 1]. The authors' code
            uses 0.9.
        seed: Seed for labels or actions sampled from the model.
    """

    name = "rwalk"
    traits: ClassVar[Traits] = Traits(copies=10, rank={"other": 9})
    state = ("fisher", "score", "past", "start", "steps", "path", "penalty", "warning", "generator")

    EPSILON = 1e-3

    def __init__(
        self, strength: float = 1.0, interval: int = 50, alpha: float = 0.9, seed: int = 0
    ) -> None:
        check_range("interval", interval, 1)
        check_range("alpha", alpha, 0, 1)
        self.strength = check_strength(strength)
        self.interval, self.alpha = interval, alpha
        self.generator = torch.Generator().manual_seed(seed)
        self.path, self.penalty = PathIntegral(), Quadratic()
        self.warning = ClassIncrementalWarning("rwalk")
        self.fisher: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}  # s of the current task
        self.past: dict[str, Tensor] = {}  # s of earlier tasks
        self.start: dict[str, Tensor] = {}  # weights at the start of the interval
        self.steps = 0

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        new = model.weights().keys() - (self.fisher.keys() & self.start.keys())
        if new or self.steps % self.interval == 0:
            self._close_interval(model)
            self._average(model, batch)
        self.steps += 1
        self.path.before_step(model)
        self.penalty.add_gradient(model, 2 * self.strength)

    def after_step(self, batch: Batch, model: Model) -> None:
        self.path.after_step()

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.warning.check(model, batches)
        if not self.steps:
            return  # the task was learned together with one that has ended already
        self._close_interval(model)
        now = snapshot(model)  # only trained weights
        score = _scaled({name: s for name, s in self.score.items() if name in now})
        fisher = _scaled({name: F for name, F in self.fisher.items() if name in now})
        for name, s in score.items():
            self.past[name] = (self.past[name] + s) / 2 if name in self.past else s
        importance = {name: F + self.past[name] for name, F in fisher.items() if name in self.past}
        self.penalty.move(importance, now, decay=0.0)
        self.score, self.steps = {}, 0

    def _average(self, model: Model, batch: Batch) -> None:
        """Update the moving average of F with the current batch."""
        estimate = diagonal_fisher(model, [batch], generator_for(model, self.generator))
        for name, F in estimate.items():
            if name in self.fisher:
                F = self.alpha * F + (1 - self.alpha) * self.fisher[name]
            self.fisher[name] = F

    def _close_interval(self, model: Model) -> None:
        """Add the path importance of the current interval to s, and start a new interval."""
        now = snapshot(model)
        for name, omega in self.path.omega.items():
            if name not in now or name not in self.start or name not in self.fisher:
                continue  # the weight is frozen by now, or new
            distance = self.fisher[name] * (now[name] - self.start[name]) ** 2 / 2
            score = omega.clamp(min=0) / (distance + self.EPSILON)
            self.score[name] = self.score[name] + score if name in self.score else score
        self.path.clear()
        self.start = now


def _scaled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all values divided by the largest."""
    largest = max((float(v.max()) for v in values.values()), default=0.0)
    return {name: v / largest if largest > 0 else v for name, v in values.items()}
