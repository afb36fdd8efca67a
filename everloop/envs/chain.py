"""The endless sequence of passes over one task's examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from everloop.envs.mixture import FIELDS, Presentations


class Chain:
    """Endless sequence of passes over one task, of which each part is taken once and in order.

    Args:
        draw_pass: `draw_pass(epoch)` returns the presentations of one pass, (FIELDS, n), n >= 1.

    Attributes:
        epoch: Number of the current pass; -1 before the first.
        cursor: Position in the current pass of the next presentation.
        current: The presentations of the current pass, (FIELDS, n).
        returned: Presentations that were given back, (FIELDS,) each, oldest first.
    """

    def __init__(self, draw_pass: Callable[[int], Presentations]) -> None:
        self._draw_pass = draw_pass
        self.epoch = -1
        self.cursor = 0
        self.current: Presentations = np.zeros((FIELDS, 0), dtype=np.int64)
        self.returned: list[Presentations] = []

    def take(self, count: int) -> Presentations:
        """Return a copy of the next `count` presentations, (FIELDS, count), returned ones first."""
        stop = self.cursor + count
        if not self.returned and stop <= self.current.shape[1]:
            taken = self.current[:, self.cursor : stop].copy()
            self.cursor = stop
            return taken
        parts = [presentation[:, None] for presentation in self.returned[:count]]
        del self.returned[:count]
        missing = count - len(parts)
        while missing:
            if self.cursor == self.current.shape[1]:
                self._begin_pass(self.epoch + 1)
            part = self.current[:, self.cursor : self.cursor + missing]
            self.cursor += part.shape[1]
            missing -= part.shape[1]
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def give_back(self, presentation: Presentations) -> None:
        """Put one presentation, (FIELDS,), back, to be taken again before all new ones."""
        self.returned.append(presentation.copy())

    def _begin_pass(self, epoch: int) -> None:
        self.current = self._draw_pass(epoch)
        self.epoch = epoch
        self.cursor = 0

    def restore(self, epoch: int, cursor: int, returned: Sequence[Presentations]) -> None:
        """Continue where a chain with the same passes stood: its `epoch`, `cursor`, `returned`."""
        if epoch >= 0:
            self._begin_pass(epoch)
        self.cursor = cursor
        self.returned = [presentation.copy() for presentation in returned]
