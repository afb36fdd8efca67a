"""A frozen copy of the network, for distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect


class Teacher:
    """A frozen copy of a model's network.

    A saved state contains only the weights; `restore` builds the network from them.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self._weights: Mapping[str, Tensor] | None = None  # from a loaded state

    def copy(self, model: Model) -> None:
        """Copy the network as it is now."""
        self.module = model.frozen_copy()

    def state_dict(self) -> dict[str, Any]:
        if self.module is None:
            return {}
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module, self._weights = None, state or None

    def restore(self, model: Model) -> None:
        """Build the network of a loaded state from a copy of the model's network.

        Raises:
            ValueError: If another strategy adds weights, since the saved copy may have had fewer.
        """
        if self._weights is None:
            return
        for other in model.strategies:
            if Effect.ADDS_WEIGHTS in other.effects:
                raise ValueError(
                    f"a network copied before {type(other).__name__} added weights can't be "
                    "restored; start the run again"
                )
        self.module = model.frozen_copy()
        for name, p in list(self.module.named_parameters()):
            if name in self._weights and p.shape != self._weights[name].shape:
                # A layer has grown since, in a user's own loop.
                owner, _, key = name.rpartition(".")
                smaller = torch.empty_like(self._weights[name], device=p.device, dtype=p.dtype)
                setattr(
                    self.module.get_submodule(owner), key, nn.Parameter(smaller, p.requires_grad)
                )
        self.module.load_state_dict(self._weights)
        self._weights = None
