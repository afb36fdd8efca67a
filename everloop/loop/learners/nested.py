"""Nested learning: parts of a network that learn at different frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class NestedOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, its parameters in levels; a level changes every C steps, by the sum of
    the updates until then.

        theta_(i+1) = theta_i - sum_(t = i - C + 1 .. i) eta_t f(theta_t; x_t)    if C divides i,
                      theta_i                                                     otherwise

    f is the inner optimizer's update. Its state (momentum, moments) goes on at every step, with
    gradients at weights that stand still in the meantime. Period 1 is the inner optimizer itself,
    to the last bit. Behrouz et al. 2025, "Nested Learning", the continuum memory system's rule; see
    `docs/nested.md`.

    levels: period C -> its parameters; those in no level have period 1.
    Memory: two more copies of the weights with periods above 1. Raises ValueError for periods below
    1, and for parameters that are not the optimizer's or in two levels.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, levels: Mapping[int, Iterable[nn.Parameter]]
    ) -> None:
        known: set[Tensor] = {p for group in optimizer.param_groups for p in group["params"]}
        self.slow: dict[int, list[Tensor]] = {
            period: list(parameters) for period, parameters in levels.items()
        }
        placed: set[Tensor] = set()
        for period, parameters in self.slow.items():
            if period < 1:
                raise ValueError(f"a level's period is {period}, allowed: 1 or more")
            if stray := [p for p in parameters if p not in known]:
                raise ValueError(
                    f"level {period} has a parameter of shape {tuple(stray[0].shape)} that the "
                    "optimizer has not"
                )
            if len(set(parameters)) < len(parameters) or placed & set(parameters):
                raise ValueError(
                    f"a parameter of level {period} is there twice, allowed: once, in one level"
                )
            placed |= set(parameters)
        self.slow.pop(1, None)
        self.inner, self.steps = optimizer, 0
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.sums = {
            period: [torch.zeros_like(p) for p in parameters]
            for period, parameters in self.slow.items()
        }
        self.still = {
            period: [torch.empty_like(p) for p in parameters]
            for period, parameters in self.slow.items()
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimizer; levels whose period it does not complete are put back to
        where they were.
        """
        for period, parameters in self.slow.items():
            torch._foreach_copy_(self.still[period], parameters)
        loss = self.inner.step(closure) if closure is not None else self.inner.step()
        self.steps += 1
        for period, parameters in self.slow.items():
            sums, still = self.sums[period], self.still[period]
            torch._foreach_sub_(parameters, still)
            torch._foreach_add_(sums, parameters)
            torch._foreach_copy_(parameters, still)
            if self.steps % period == 0:
                torch._foreach_add_(parameters, sums)
                torch._foreach_zero_(sums)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, the number of steps, and each level's sum so far."""
        sums = {period: [s.clone() for s in level] for period, level in self.sums.items()}
        return {"inner": self.inner.state_dict(), "steps": self.steps, "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the midst of a period as if never interrupted.

        Raises ValueError if the state has other levels.
        """
        if {p: len(level) for p, level in state_dict["sums"].items()} != {
            p: len(level) for p, level in self.sums.items()
        }:
            raise ValueError(
                f"the state has the periods {sorted(state_dict['sums'])}, allowed: "
                f"{sorted(self.sums)}, of as many parameters"
            )
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self.steps = state_dict["steps"]
        for period, level in self.sums.items():
            torch._foreach_copy_(level, state_dict["sums"][period])


def levels_by_depth(module: nn.Module, periods: Sequence[int]) -> dict[int, list[nn.Parameter]]:
    """The module's parameters in as many parts as there are periods, about equal in numbers of
    tensors.

    The first period is that of the last layers; what is nearer to the input gets the later ones.
    Raises ValueError for more periods than there are parameters, for none, and for one that is
    there twice.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not 1 <= len(periods) <= len(parameters) or len(set(periods)) < len(periods):
        raise ValueError(
            f"periods are {list(periods)}, allowed: 1 to {len(parameters)} different ones"
        )
    count, levels = len(periods), {}
    for i, period in enumerate(periods):
        begin, end = (len(parameters) * part // count for part in (count - 1 - i, count - i))
        levels[period] = parameters[begin:end]
    return levels
