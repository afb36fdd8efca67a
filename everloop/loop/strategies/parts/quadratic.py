"""What every importance-weighted pull towards old weights comes down to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from everloop.loop.model import Model
from everloop.loop.state import Stateful


class Quadratic(Stateful):
    """1/2 sum_i P_i (w_i - c_i)^2, two numbers for each weight, by its name.

    A sum of quadratics is one again.
    """

    state = ("precision", "anchor")

    def __init__(self) -> None:
        self.precision: dict[str, Tensor] = {}  # P
        self.anchor: dict[str, Tensor] = {}  # c
        self._shift: dict[str, Tensor] = {}  # w - c

    def __bool__(self) -> bool:
        return bool(self.precision)

    def add(self, precision: Mapping[str, Tensor], center: Mapping[str, Tensor]) -> None:
        """Add another quadratic: c <- (P c + F w*) / (P + F), P <- P + F."""
        for name, F in precision.items():
            w = center[name]
            P, c = self.precision.get(name, torch.zeros_like(F)), self.anchor.get(name, w)
            # the precision-weighted mean, written so that a weight without any precision keeps its
            # center
            self.anchor[name] = c + (F / (P + F).clamp(min=torch.finfo(F.dtype).tiny)) * (w - c)
            self.precision[name] = P + F

    def move(
        self, precision: Mapping[str, Tensor], center: Mapping[str, Tensor], decay: float = 1.0
    ) -> None:
        """One anchor for all: c <- w*, P <- decay P + F."""
        for name, F in precision.items():
            self.precision[name] = decay * self.precision[name] + F if name in self.precision else F
            self.anchor[name] = center[name]

    def add_gradient(self, model: Model, strength: float) -> None:
        """grad += strength P (w - c), of every weight that has a gradient."""
        for name, p in model.weights().items():
            if p.grad is not None and name in self.precision:
                if name not in self._shift or self._shift[name].shape != p.shape:
                    self._shift[name] = torch.empty_like(
                        p
                    )  # kept: to allocate it anew would cost as much as to fill it
                shift = torch.sub(p.detach(), self.anchor[name], out=self._shift[name])
                p.grad.addcmul_(shift, self.precision[name], value=strength)

    @torch.no_grad()
    def proximal_step(self, model: Model, strength: float) -> None:
        """w <- argmin_v |v - w|^2 / (2 lr) + strength / 2 P (v - c)^2 = (w + lr strength P c) / (1
        + lr strength P).
        """
        names = {p: name for name, p in model.weights().items() if name in self.precision}
        for group in model.optimizer.param_groups:
            for p in (p for p in group["params"] if p in names and p.grad is not None):
                a = float(group["lr"]) * strength * self.precision[names[p]]
                p.add_((self.anchor[names[p]] - p) * (a / (1 + a)))


def snapshot(model: Model) -> dict[str, Tensor]:
    """Copies of the trainable weights."""
    return {name: p.detach().clone() for name, p in model.weights().items()}


@torch.no_grad()
def restore_weights(model: Model, kept: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """w <- w + held (kept - w), of each weight that `held` names: exactly `kept` where held is 1,
    exactly w where it is 0.
    """
    rows = [(p, kept[name], held[name]) for name, p in model.weights().items() if name in held]
    if rows:
        weights, there, share = (list(column) for column in zip(*rows, strict=True))
        torch._foreach_lerp_(weights, there, share)
