"""Synaptic intelligence (SI): a penalty weighted by path importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from everloop.contract import Task
from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range, check_strength
from everloop.loop.strategies.parts.path_integral import PathIntegral
from everloop.loop.strategies.parts.quadratic import Quadratic, snapshot
from everloop.loop.strategies.parts.warning import ClassIncrementalWarning


class SI(Strategy):
    """Anchors each weight in proportion to how much its changes lowered the loss of past tasks.

        penalty = strength * sum_i Omega_i (w_i - w*_i)^2            (Zenke et al. 2017, eq. 4)
        Omega_i = sum_k max(0, omega_ki) / (Delta_ki^2 + damping)    (eq. 5)
        omega_ki = - sum over the steps of task k of g_i * (w_i after - w_i before)      (eq. 3)

    g is the gradient without this penalty and before clipping, Delta_k the change of the weights in
    task k, and w* the weights at the last task's end. A negative omega means that the weight raised
    the loss. It counts as 0, so the penalty never pushes weights away from w*.

    Memory: seven numbers per weight, for any number of tasks. No examples are needed, and there are
    no forward passes at a task's end.

    Args:
        strength: Weight of the penalty, 0 or more; 0 is plain training. The paper calls it c. Tune
            it; the default was not checked against the paper.
        damping: Term that keeps the importance of nearly unmoved weights finite, above 0. The paper
            calls it xi. The authors' code uses 0.1 on permuted MNIST and 0.001 on CIFAR-10.
    """

    name = "si"
    traits: ClassVar[Traits] = Traits(copies=7, rank={"control": 7, "other": 6})
    state = ("path", "penalty", "start", "warning")

    def __init__(self, strength: float = 1.0, damping: float = 0.1) -> None:
        check_range("damping", damping, 1e-12)
        self.strength, self.damping = check_strength(strength), damping
        self.path, self.penalty = PathIntegral(), Quadratic()
        self.start: dict[str, Tensor] = {}  # weights at the start of the task
        self.warning = ClassIncrementalWarning("si")

    def begin_task(self, task: Task, model: Model) -> None:
        self.path.clear()
        self.start = snapshot(model)

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        for name, p in model.weights().items():
            if name not in self.start:  # another strategy has added it during the task
                self.start[name] = p.detach().clone()
        self.path.before_step(model)
        self.penalty.add_gradient(model, 2 * self.strength)

    def after_step(self, batch: Batch, model: Model) -> None:
        self.path.after_step()

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.warning.check(model, batches)
        now = snapshot(model)
        importance = {}
        for name, omega in self.path.omega.items():
            if name in now:  # otherwise the weight is frozen by now
                change = now[name] - self.start.get(name, now[name])
                importance[name] = omega.clamp(min=0) / (change**2 + self.damping)
        self.penalty.move(importance, now)
        self.path.clear()
        self.start = now
