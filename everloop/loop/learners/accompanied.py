"""A model with strategies around each step of its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everloop.loop.learners.update import Updater
from everloop.loop.model import Model
from everloop.loop.state import pack
from everloop.loop.strategies.base import (
    Forward,
    Strategy,
    check_combination,
    load_states,
    states_of,
)


class Accompanied(Model):
    """A model with strategies, which run at each step of its optimizer.

    It does not matter where `optimizer.step()` is called.

    Attributes:
        strategies: The active strategies, in their order of application.
        updater: Runs the strategies around every step of the optimizer.
        max_grad_norm: Norm to which the gradient is clipped after the strategies, above 0; None for
            no clipping.
    """

    strategies: Sequence[Strategy] = ()
    updater: Updater
    max_grad_norm: float | None = None

    def check(self, strategies: Sequence[Strategy]) -> None:
        """Check that the active strategies work with this model and with each other.

        Raises:
            ValueError: If one does not. The message says why and what to do.
        """
        active = [strategy for strategy in strategies if strategy.active]
        for strategy in active:
            strategy.check(self)
        check_combination(active)

    def attach(self, strategies: Sequence[Strategy]) -> None:
        """Run `strategies` around every update from now on, in place of earlier strategies.

        Args:
            strategies: Strategies in their order of application. Inactive ones are left out.

        Raises:
            ValueError: If one does not work with this model or with another one. Nothing has
                changed then.
        """
        self.check(strategies)
        self.strategies = [strategy for strategy in strategies if strategy.active]
        if hasattr(self, "updater"):
            self.updater.detach()
        self.updater = Updater(self, self.strategies, self.max_grad_norm, self.late_forwards)

    def late_forwards(self) -> Sequence[Forward]:
        """Return forward passes of fresh batches whose losses are not in the gradient yet.

        Called in each step that other code takes.
        """
        return ()

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient in the last optimizer step; None before the first one."""
        gradients = [p.grad for p in self.updater.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None

    @property
    def networks(self) -> nn.Module:
        """Module that holds all networks whose weights training changes."""
        return self.module

    def learned(self) -> dict[str, Any]:
        """Return the state of the network, the optimizer and the strategies with their memories."""
        return {
            "strategies": states_of(self.strategies),
            "module": pack(dict(self.networks.state_dict())),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_learned(self, state: Mapping[str, Any]) -> None:
        """Restore what `learned` returned. The world and the number of steps are unchanged.

        Raises:
            ValueError: If the state belongs to another network or to other strategies.
        """
        # Strategies come first: they add weights again, which the other two states have values for.
        load_states(self.strategies, state["strategies"], self)
        load_weights(self.networks, state["module"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def trained_by(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return those of `weights`, by name, that the optimizer trains."""
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in weights.items() if p in trained}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights and buffers, by name, into `module`.

    Raises:
        ValueError: If names or shapes differ. Nothing has changed then.
    """
    own = {name: value.shape for name, value in module.state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if wrong:
        raise ValueError(
            f"the state belongs to another network: {', '.join(wrong[:3])} "
            f"differ{'s' if len(wrong) == 1 else ''}; build the network with the same settings"
        )
    module.load_state_dict(weights)
