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
from everloop.loop.strategies.base import Strategy, load_states, states_of


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
        """Raise ValueError if one of `strategies` that are active cannot work here, or not beside
        the others.
        """
        before, self.strategies = (
            self.strategies,
            [strategy for strategy in strategies if strategy.active],
        )
        try:
            for strategy in self.strategies:
                strategy.check(self)
            _check_one("replace the task loss", [s for s in self.strategies if s.replaces_loss])
            _check_one("add weights", [s for s in self.strategies if s.adds_weights])
        finally:
            self.strategies = before

    def attach(self, strategies: Sequence[Strategy]) -> None:
        """Let those of `strategies` that are active accompany every update from now on, in this
        order, in place of earlier ones.

        Raises: ValueError: If one of them cannot work here, or not beside the others; then all is
            as it was.
        """
        self.check(strategies)
        self.strategies = [strategy for strategy in strategies if strategy.active]
        if hasattr(self, "updater"):
            self.updater.detach()
        self.updater = Updater(self, self.strategies, self.max_grad_norm)

    def gradient_norm(self) -> float | None:
        """The norm of the latest update's gradient, as the optimizer used it; None where there is
        none.
        """
        gradients = [p.grad for p in self.updater.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None

    @property
    def networks(self) -> nn.Module:
        """All that training changes the weights of."""
        return self.module

    def learned(self) -> dict[str, Any]:
        """What learning changes: the network, the optimizer, and the strategies with what they
        store.
        """
        return {
            "strategies": states_of(self.strategies),
            "module": pack(dict(self.networks.state_dict())),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_learned(self, state: Mapping[str, Any]) -> None:
        """Return to what `learned` gave, while the world and the count of steps stay where they
        are.

        Raises:
            ValueError: For the state of another network or of other strategies.
        """
        load_states(
            self.strategies, state["strategies"], self
        )  # first: the network gets the weights back that they had added
        load_weights(self.networks, state["module"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give `module` these weights and buffers.

    Raises ValueError if it has others; nothing has changed then.
    """
    shapes, given = (
        {name: value.shape for name, value in held.items()}
        for held in (module.state_dict(), weights)
    )
    wrong = sorted(
        name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)
    )
    if wrong:
        raise ValueError(
            f"the state is of another network: {', '.join(wrong[:3])} "
            f"differ{'s' if len(wrong) == 1 else ''}"
        )
    module.load_state_dict(weights)


def _check_one(what: str, strategies: Sequence[Strategy]) -> None:
    """Raise ValueError if there are several that do `what`."""
    if len(strategies) > 1:
        raise ValueError(
            f"{' and '.join(type(s).__name__ for s in strategies)} each {what}; use one of them"
        )
