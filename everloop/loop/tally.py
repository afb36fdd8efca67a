"""Counts of what training has cost, and of how well the learner did while it learned."""

from __future__ import annotations

from typing import ClassVar

from everloop.loop.state import Stateful


class Tally(Stateful):
    """Running counts of a training.

    Attributes:
        updates: Steps of the optimizer of the network that strategies see, including those that
            strategies take by themselves.
        presentations: Examples whose gradient an update used; an example counts each time. In
            control an example is a step of a minibatch.
        right: Sum of the shares, from 0 to 1, of right labels in each example's guess before its
            update.
        guessed: Number of examples in `right`.
        returns: Sum of the returns of the episodes that have ended in training.
        episodes: Number of episodes in `returns`.
    """

    state: ClassVar[tuple[str, ...]] = (
        "updates",
        "presentations",
        "right",
        "guessed",
        "returns",
        "episodes",
    )

    def __init__(self) -> None:
        self.updates = self.presentations = 0
        self.right, self.guessed = 0.0, 0
        self.returns, self.episodes = 0.0, 0

    @property
    def online_accuracy(self) -> float | None:
        """Accuracy in % on each example before its update; None if there were no labels."""
        return 100 * self.right / self.guessed if self.guessed else None

    @property
    def online_return(self) -> float | None:
        """Mean return of the episodes that have ended in training; None if there were none."""
        return self.returns / self.episodes if self.episodes else None
