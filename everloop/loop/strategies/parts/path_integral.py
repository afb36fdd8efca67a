"""How much the changes of each weight during training lowered the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everloop.loop.model import Model
from everloop.loop.state import Stateful

Row = tuple[nn.Parameter, Tensor, Tensor, Tensor]
"""A weight, its omega, its gradient and its value before the step."""


class PathIntegral(Stateful):
    """Each weight's contribution to the decrease of the loss.

        omega_i = - sum over steps of g_i (w_i after - w_i before)

    g is the gradient before the step. The sum of omega over all weights is the decrease of the loss
    to first order in each step.
    """

    state = ("omega",)

    def __init__(self) -> None:
        self.omega: dict[str, Tensor] = {}
        self._live: list[Row] = []
        self._names: tuple[str, ...] = ()

    def before_step(self, model: Model) -> None:
        """Record the weights and the gradient, before a penalty is added to the gradient."""
        live = [(name, p) for name, p in model.weights().items() if p.grad is not None]
        names = tuple(name for name, _ in live)
        if names != self._names or any(
            p is not row[0] for (_, p), row in zip(live, self._live, strict=True)
        ):
            self._names, self._live = names, []
            for name, p in live:
                omega = self.omega.setdefault(name, torch.zeros_like(p))
                self._live.append((p, omega, torch.empty_like(p), torch.empty_like(p)))
        if self._live:
            columns = [list(column) for column in zip(*self._live, strict=True)]
            weights, _, gradients, before = columns
            torch._foreach_copy_(gradients, [w.grad for w in weights])
            torch._foreach_copy_(before, [w.detach() for w in weights])

    @torch.no_grad()
    def after_step(self) -> None:
        """Add the contribution of this step to omega."""
        if self._live:
            columns = [list(column) for column in zip(*self._live, strict=True)]
            weights, omega, gradients, before = columns
            torch._foreach_sub_(before, weights)
            torch._foreach_addcmul_(omega, gradients, before)

    def clear(self) -> None:
        """Set omega to 0, to begin a new path."""
        for omega in self.omega.values():
            omega.zero_()

    def _restored(self) -> None:
        self._live, self._names = [], ()
