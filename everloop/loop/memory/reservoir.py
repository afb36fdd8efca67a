"""A memory of fixed size that is, at any time, a uniform sample of everything it was offered."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.loop.memory.memory import Kept, Memory
from everloop.loop.memory.store import Rows


class Reservoir(Memory):
    """Reservoir sampling (Vitter 1985, algorithm R): offer n is kept with probability
    capacity / n.
    """

    def reserve(
        self,
        offers: int,
        groups: Rows | None = None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Kept:
        if offers == 1:
            return self._reserve_one()
        index = self.offered + np.arange(offers)
        slot = np.where(index < self.capacity, index, self.rng.integers(0, index + 1))
        kept = np.flatnonzero(slot < self.capacity)
        # a later offer overwrites an earlier one's row: keep each row's last
        rows, last = np.unique(slot[kept][::-1], return_index=True)
        self.offered += offers
        self.size = min(self.offered, self.capacity)
        return kept[::-1][last], rows

    def _reserve_one(self) -> Kept:
        """The same without arrays on the way, for worlds that give one example at a time."""
        drawn = int(self.rng.integers(0, self.offered + 1))
        slot = self.offered if self.offered < self.capacity else drawn
        self.offered += 1
        self.size = min(self.offered, self.capacity)
        kept = np.zeros(int(slot < self.capacity), np.int64)
        return kept, kept + slot
