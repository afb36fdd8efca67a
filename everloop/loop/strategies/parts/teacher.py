"""The network as it was, to be asked later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect


class Teacher:
    """A frozen copy of a model's network.

    Its state holds the weights; `restore` makes the network again.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self._weights: Mapping[str, Tensor] | None = None  # of a loaded state

    def copy(self, model: Model) -> None:
        """The network as it is now."""
        self.module = model.frozen_copy()

    def state_dict(self) -> dict[str, Any]:
        return (
            {}
            if self.module is None
            else {name: value.clone() for name, value in self.module.state_dict().items()}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module, self._weights = None, state or None

    def restore(self, model: Model) -> None:
        """The network of a loaded state, made from the model's.

        Raises:
            ValueError: Beside a strategy that adds weights: the copy may have had fewer of them.
        """
        if self._weights is None:
            return
        for other in model.strategies:
            if Effect.ADDS_WEIGHTS in other.effects:
                raise ValueError(
                    f"a network copied before {type(other).__name__} added weights can't be "
                    "restored; begin the run anew"
                )
        self.module = model.frozen_copy()
        self.module.load_state_dict(self._weights)
        self._weights = None
