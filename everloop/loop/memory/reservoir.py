"""A replay memory that is always a uniform sample of everything it was offered."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.loop.memory.memory import Kept, Memory
from everloop.loop.memory.store import Rows


class Reservoir(Memory):
    """Reservoir sampling (Vitter 1985, algorithm R).

    The n-th example offered is stored with probability min(1, capacity / n). A later one may
    overwrite it.
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
        # A later offer overwrites an earlier one in the same row, so the last of each row is kept.
        rows, last = np.unique(slot[kept][::-1], return_index=True)
        self.offered += offers
        self.size = min(self.offered, self.capacity)
        return kept[::-1][last], rows

    def _reserve_one(self) -> Kept:
        """Reserve for one offer, with the same draws but without the arrays of the general case."""
        drawn = int(self.rng.integers(0, self.offered + 1))
        slot = self.offered if self.offered < self.capacity else drawn
        self.offered += 1
        self.size = min(self.offered, self.capacity)
        kept = np.zeros(int(slot < self.capacity), np.int64)  # offer 0, or none
        return kept, kept + slot
