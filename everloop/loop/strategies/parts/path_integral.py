"""How much each weight's own way lowered the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everloop.loop.model import Model
from everloop.loop.state import Stateful


class PathIntegral(Stateful):
    """omega_i = - sum over steps of g_i (w_i after - w_i before), with the gradient g before the
    step.

    All omega together are the drop of the loss, as far as it is linear within a step.
    """

    state = ("omega",)

    def __init__(self) -> None:
        self.omega: dict[str, Tensor] = {}
        self._live: list[
            tuple[nn.Parameter, Tensor, Tensor, Tensor]
        ] = []  # weight, omega, gradient, weight before
        self._names: tuple[str, ...] = ()

    def before_step(self, model: Model) -> None:
        """Note the weights and the gradient as it is now: before any pull of one's own."""
        live = [(name, p) for name, p in model.weights().items() if p.grad is not None]
        if tuple(name for name, _ in live) != self._names or any(
            p is not row[0] for (_, p), row in zip(live, self._live, strict=True)
        ):
            self._names = tuple(name for name, _ in live)
            self._live = []
            for name, p in live:
                omega = self.omega.setdefault(name, torch.zeros_like(p))
                self._live.append((p, omega, torch.empty_like(p), torch.empty_like(p)))
        if self._live:
            weights, _, gradients, before = (
                list(column) for column in zip(*self._live, strict=True)
            )
            torch._foreach_copy_(gradients, [w.grad for w in weights])
            torch._foreach_copy_(before, [w.detach() for w in weights])

    @torch.no_grad()
    def after_step(self) -> None:
        """Add this step's share."""
        if self._live:
            weights, omega, gradients, before = (
                list(column) for column in zip(*self._live, strict=True)
            )
            torch._foreach_sub_(before, weights)
            torch._foreach_addcmul_(omega, gradients, before)

    def clear(self) -> None:
        """A new path begins."""
        for omega in self.omega.values():
            omega.zero_()

    def _restored(self) -> None:
        self._live, self._names = [], ()
