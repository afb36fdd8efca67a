"""Nested learning: parts of a network are updated at different frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class NestedOptimizer(torch.optim.Optimizer):
    """An optimizer that changes each frequency level of the weights every C steps only.

    A level changes by the sum of the updates since its last change:

        theta_(i+1) = theta_i - sum_(t = i - C + 1 .. i) eta_t f(theta_t; x_t)    if C divides i,
                      theta_i                                                     otherwise

    f is the update of the inner optimizer. Its state (momentum, moments) advances at every step,
    with gradients at weights that do not change between the steps of their level. A level of period
    1 is trained by the inner optimizer as such, bit for bit. This is the update rule of the
    continuum memory system (Behrouz et al. 2025, "Nested Learning"); see `docs/nested.md`.

    Needs RAM for two more copies of the weights with periods above 1.

    Args:
        optimizer: The inner optimizer, any of torch's.
        levels: Period C in steps, 1 or more -> parameters of that level. Parameters of the
            optimizer in no level have period 1.

    Raises:
        ValueError: If a period is below 1, if a parameter does not belong to the optimizer, or if
            one occurs twice.
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
                raise ValueError(f"a level's period is {period}; it must be 1 or more")
            if stray := [p for p in parameters if p not in known]:
                raise ValueError(
                    f"level {period} has a parameter of shape {tuple(stray[0].shape)} that does "
                    "not belong to the optimizer; give the optimizer all parameters"
                )
            if len(set(parameters)) < len(parameters) or placed & set(parameters):
                raise ValueError(
                    f"a parameter of level {period} occurs twice; list each parameter once"
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
        """Take a step of the inner optimizer.

        Levels whose period is not complete are restored, and their update is added up.

        Args:
            closure: Recomputes the loss, as for any torch optimizer.

        Returns:
            What the inner optimizer returns.
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

    def restart(self) -> None:
        """Begin all periods again, and drop the updates added up so far."""
        self.steps = 0
        for sums in self.sums.values():
            torch._foreach_zero_(sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state, the number of steps, and each level's sum so far."""
        sums = {period: [s.clone() for s in level] for period, level in self.sums.items()}
        return {"inner": self.inner.state_dict(), "steps": self.steps, "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, also within a period.

        Raises:
            ValueError: If the state has other levels.
        """
        if {p: len(level) for p, level in state_dict["sums"].items()} != {
            p: len(level) for p, level in self.sums.items()
        }:
            raise ValueError(
                f"the state has the periods {sorted(state_dict['sums'])}; this optimizer needs "
                f"{sorted(self.sums)}, with the same number of parameters"
            )
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self.steps = state_dict["steps"]
        for period, level in self.sums.items():
            torch._foreach_copy_(level, state_dict["sums"][period])


def levels_by_depth(module: nn.Module, periods: Sequence[int]) -> dict[int, list[nn.Parameter]]:
    """Divide a module's trainable parameters into frequency levels by depth.

    The first period goes to the last layers, and the last period to the layers closest to the
    input.

    Args:
        module: The network. Its parameters are taken to be in order from input to output.
        periods: Different periods in steps, at least one and at most as many as there are
            parameters.

    Returns:
        Period -> parameters. The levels have about equal numbers of tensors.

    Raises:
        ValueError: If there are no periods, too many, or the same one twice.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not 1 <= len(periods) <= len(parameters) or len(set(periods)) < len(periods):
        raise ValueError(
            f"periods are {list(periods)}; give 1 to {len(parameters)} different periods"
        )
    count, levels = len(periods), {}
    for i, period in enumerate(periods):
        begin, end = (len(parameters) * part // count for part in (count - 1 - i, count - i))
        levels[period] = parameters[begin:end]
    return levels
