"""ER-ACE: replay whose loss on new classes spares the logits of past ones."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Forward, Traits
from everloop.loop.strategies.parts.rehearsal import Rehearsal, check_labels


class ERACE(Rehearsal):
    """Replay in which the loss of new examples does not push down the logits of past classes.

        loss of the fresh batch: cross-entropy over its own classes and classes never seen
        loss of stored examples: strength * cross-entropy over all classes
                                                              (Caccia et al. 2022, eq. 4)

    So only replay separates new classes from past ones. Classes never seen stay in the fresh
    batch's loss, as in the authors' code. Examples are replayed from all tasks, including the
    current one.

    Differs from the authors' code: the network keeps its last layer; there it is a cosine
    classifier, 10 cos(w, phi), without a bias. Task boundaries are not used, so masking and replay
    start with the second batch; there this is an option (task-free), and otherwise they start with
    the second task. Classes never seen are those without an example so far; there they are those
    above the largest label seen.

    Args:
        strength: Weight of the replay loss, 0 or more; 0 is plain training.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "er_ace"
    effects = frozenset({Effect.REPLACES_LOSS})
    traits: ClassVar[Traits] = Traits(
        boundaries=False,
        examples=True,
        class_incremental=True,
        control=False,
        rank={"class": 1, "other": 13},
    )
    state = ("seen",)

    seen: Tensor | None = None
    """Classes observed so far, bool (P,)."""

    def check(self, model: Model) -> None:
        check_labels(model, "er_ace", "replay or derpp")
        super().check(model)

    def recall(self, model: Model) -> Batch | None:
        return self.draw(model)

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        stored = super().loss(None, replayed, model)
        if fresh is None:
            return stored
        own = self._fresh_loss(fresh, model)
        return own if stored is None else own + stored

    def _fresh_loss(self, fresh: Forward, model: Model) -> Tensor:
        """Return the cross-entropy over the batch's own classes and classes never seen."""
        logits, labels = fresh.output.prediction, fresh.batch.target
        assert labels is not None
        present = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        present[labels] = True
        if self.seen is None:  # the first batch has no past classes to mask
            self.seen = present
            return model.loss_of(logits, labels)
        past = self.seen & ~present
        self.seen = self.seen | present
        if bool(past.any()):
            logits = logits.masked_fill(past, -torch.inf)
        return model.loss_of(logits, labels)
