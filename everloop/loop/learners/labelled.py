"""A model whose targets are labels."""

from __future__ import annotations

from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.learners.accompanied import Accompanied
from everloop.loop.learners.labels import mean_loss


class Labelled(Accompanied):
    """A model that learns labels, and whose stored examples keep them."""

    labelled = True

    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss that the likelihood stands for; see `mean_loss`."""
        return mean_loss(self.likelihood, outputs, target)

    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        return -self.likelihood.log_prob(outputs, target).sum(0)

    def targets(self, batch: Batch) -> Tensor:
        """Return the labels."""
        assert batch.target is not None, "a batch of a stream has labels"
        return batch.target

    def observed(self, batch: Batch) -> Tensor | None:
        return batch.target
