"""A model whose every optimizer step is accompanied by strategies."""

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
    Strategy,
    check_combination,
    load_states,
    states_of,
)


class Accompanied(Model):
    """A model to which strategies are attached, whoever steps its optimizer.

    Attributes:
        strategies: The active ones, in their order of application.
        updater: Runs them around every step of the optimizer.
        max_grad_norm: The gradient is clipped to this norm, after the strategies; None leaves it.
    """

    strategies: Sequence[Strategy] = ()
    updater: Updater
    max_grad_norm: float | None = None

    def check(self, strategies: Sequence[Strategy]) -> None:
        """Check that the active ones of `strategies` can work here, and together.

        Raises:
            ValueError: If one cannot; the message says why and what to do.
        """
        active = [strategy for strategy in strategies if strategy.active]
        for strategy in active:
            strategy.check(self)
        check_combination(active)

    def attach(self, strategies: Sequence[Strategy]) -> None:
        """Let `strategies` accompany every update from now on, in place of earlier ones.

        Args:
            strategies: In their order of application. Inactive ones are left out.

        Raises:
            ValueError: If one cannot work here, or not with the others. Nothing has changed then.
        """
        self.check(strategies)
        self.strategies = [strategy for strategy in strategies if strategy.active]
        if hasattr(self, "updater"):
            self.updater.detach()
        self.updater = Updater(self, self.strategies, self.max_grad_norm)

    def gradient_norm(self) -> float | None:
        """Return the norm of the latest gradient, as the optimizer used it; None without one."""
        gradients = [p.grad for p in self.updater.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None

    @property
    def networks(self) -> nn.Module:
        """Every module whose weights training changes."""
        return self.module

    def learned(self) -> dict[str, Any]:
        """Return what learning changes: network, optimizer, and strategies with their stores."""
        return {
            "strategies": states_of(self.strategies),
            "module": pack(dict(self.networks.state_dict())),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_learned(self, state: Mapping[str, Any]) -> None:
        """Restore what `learned` returned. The world and the count of steps stay as they are.

        Raises:
            ValueError: For the state of another network or of other strategies.
        """
        # First, since the network gets back the weights that strategies had added.
        load_states(self.strategies, state["strategies"], self)
        load_weights(self.networks, state["module"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give `module` these weights and buffers.

    Raises:
        ValueError: If names or shapes differ. Nothing has changed then.
    """
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    wrong = sorted(
        name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)
    )
    if wrong:
        raise ValueError(
            f"the state is of another network: {', '.join(wrong[:3])} "
            f"differ{'s' if len(wrong) == 1 else ''}"
        )
    module.load_state_dict(weights)
