"""The units of actions: those of a world, and those of a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces


class ActionUnits:
    """Converts the actions u of a network to the actions a of a world.

        Box with bounds low, high:  a = (low + high) / 2 + (high - low) / 2 * u,  u in [-1, 1]
        Box without bounds:         a = u
        Discrete, MultiDiscrete:    a = start + u,  u = 0, 1, ...

    A Gaussian policy explores by about 1 in its own units, which must not depend on the world's.
    Each dimension of a Box is converted by itself.

    Args:
        space: The world's action space.

    Attributes:
        world: The world's action space.
        network: The action space in the network's units; `world` itself if the units are the same.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.world = self.network = space
        self._shift: Any = 0
        self._scale: Any = 1
        if isinstance(space, spaces.Discrete) and space.start:
            self._shift = space.start
            self.network = spaces.Discrete(space.n)
        elif isinstance(space, spaces.MultiDiscrete) and space.start.any():
            self._shift = space.start
            self.network = spaces.MultiDiscrete(space.nvec)
        elif isinstance(space, spaces.Box):
            with np.errstate(over="ignore", invalid="ignore"):
                bounded = np.isfinite(space.high - space.low)
                shift = np.where(bounded, (space.low + space.high) / 2, 0)
                scale = np.where(bounded, (space.high - space.low) / 2, 1)
            if shift.any() or (scale != 1).any():
                self._shift, self._scale = shift.astype(np.float32), scale.astype(np.float32)
                low, high = np.where(bounded, -1, space.low), np.where(bounded, 1, space.high)
                self.network = spaces.Box(low.astype(np.float32), high.astype(np.float32))

    @property
    def same(self) -> bool:
        """True if both units are the same."""
        return self.network is self.world

    def to_world(self, u: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the world's actions, clipped to its bounds, for actions u (B, ...)."""
        a = u if self.same else self._shift + self._scale * u
        if isinstance(self.world, spaces.Box):
            a = np.clip(a, self.world.low, self.world.high)
        typed: npt.NDArray[Any] = a.astype(self.world.dtype, copy=False)
        return typed

    def to_network(self, a: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the network's actions for actions a (B, ...) of the world."""
        if isinstance(self.world, spaces.Box):
            return a if self.same else np.asarray((a - self._shift) / self._scale)
        return np.asarray(a.astype(np.int64) - self._shift)
