"""The quadratic penalty that all importance-weighted strategies share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from everloop.loop.model import Model
from everloop.loop.state import Stateful


class Quadratic(Stateful):
    """A quadratic penalty on the weights, with two numbers for each weight.

        1/2 sum_i P_i (w_i - c_i)^2

    P is the precision and c the anchor; both are stored by the weight's name. A sum of such
    quadratics is again one of them, up to a constant.
    """

    state = ("precision", "anchor")

    def __init__(self) -> None:
        self.precision: dict[str, Tensor] = {}  # P
        self.anchor: dict[str, Tensor] = {}  # c
        self._shift: dict[str, Tensor] = {}  # w - c

    def __bool__(self) -> bool:
        return bool(self.precision)

    def add(self, precision: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
        """Add another quadratic: c <- (P c + F w*) / (P + F), P <- P + F.

        Args:
            precision: F by the weight's name, 0 or more.
            anchor: w* by the weight's name.
        """
        for name, F in precision.items():
            w = anchor[name]
            P, c = self.precision.get(name, torch.zeros_like(F)), self.anchor.get(name, w)
            # This form of the weighted mean keeps the anchor where both precisions are 0.
            self.anchor[name] = c + (F / (P + F).clamp(min=torch.finfo(F.dtype).tiny)) * (w - c)
            self.precision[name] = P + F

    def move(
        self, precision: Mapping[str, Tensor], anchor: Mapping[str, Tensor], decay: float = 1.0
    ) -> None:
        """Replace the anchor: c <- w*, P <- decay P + F.

        Args:
            precision: F by the weight's name, 0 or more.
            anchor: w* by the weight's name.
            decay: Factor on the earlier precision, in [0, 1].
        """
        for name, F in precision.items():
            self.precision[name] = decay * self.precision[name] + F if name in self.precision else F
            self.anchor[name] = anchor[name]

    def add_gradient(self, model: Model, strength: float) -> None:
        """Add the gradient strength * P (w - c) to every weight that has a gradient."""
        for name, p in model.weights().items():
            if p.grad is not None and name in self.precision:
                if name not in self._shift or self._shift[name].shape != p.shape:
                    # Kept between steps, since allocating it costs as much as filling it.
                    self._shift[name] = torch.empty_like(p)
                shift = torch.sub(p.detach(), self.anchor[name], out=self._shift[name])
                p.grad.addcmul_(shift, self.precision[name], value=strength)

    @torch.no_grad()
    def proximal_step(self, model: Model, strength: float) -> None:
        """Take a proximal step on the penalty, for every weight that has a gradient.

            w <- argmin_v |v - w|^2 / (2 lr) + strength / 2 P (v - c)^2
               = (w + lr strength P c) / (1 + lr strength P)

        lr is the optimizer's learning rate.
        """
        names = {p: name for name, p in model.weights().items() if name in self.precision}
        for group in model.optimizer.param_groups:
            for p in (p for p in group["params"] if p in names and p.grad is not None):
                a = float(group["lr"]) * strength * self.precision[names[p]]
                p.add_((self.anchor[names[p]] - p) * (a / (1 + a)))


def snapshot(model: Model) -> dict[str, Tensor]:
    """Return copies of the trainable weights by name."""
    return {name: p.detach().clone() for name, p in model.weights().items()}


@torch.no_grad()
def restore_weights(
    model: Model, values: Mapping[str, Tensor], shares: Mapping[str, Tensor]
) -> None:
    """Move weights back towards stored values: w <- w + share (value - w).

    The result is exactly the value where the share is 1, and exactly w where it is 0.

    Args:
        model: The model whose weights are restored.
        values: Stored values by the weight's name.
        shares: Shares in [0, 1] by the weight's name. Weights without an entry are unchanged.
    """
    own = model.weights()
    names = [name for name in own if name in shares]
    if names:
        torch._foreach_lerp_(
            [own[name] for name in names],
            [values[name] for name in names],
            [shares[name] for name in names],
        )
