"""A-GEM: projects gradients that would raise the mean loss on past examples."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Traits
from everloop.loop.strategies.parts.gradients import gradient, inner
from everloop.loop.strategies.parts.rehearsal import Rehearsal


class AGEM(Rehearsal):
    """Projects each gradient so that, to first order, the mean loss on past examples cannot rise.

        g <- g - (g . g_ref) / (g_ref . g_ref) g_ref   if g . g_ref < 0
                                                       (Chaudhry et al. 2019, eq. 11)

    g_ref is the gradient of the mean loss on a sample of stored examples of ended tasks. The
    guarantee holds for plain gradient descent. An optimizer that rescales each weight, such as
    Adam, may still raise the loss on the memory.

    Args:
        strength: Share of the projection that is applied, 0 or more; 0 is plain training. 1 is the
            method as published.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more. The authors'
            code uses 256, which is better on split-digits; 64 is the common default.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative. The authors' code stores equally many examples of each class.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "agem"
    traits: ClassVar[Traits] = Traits(
        examples=True, class_incremental=True, rank={"class": 8, "other": 12}
    )

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        stored = self.draw(model, self.past)
        if stored is None:
            return
        live = [p for p in model.weights().values() if p.grad is not None]
        if not live:
            return
        grads: list[Tensor] = [p.grad for p in live if p.grad is not None]
        reference = gradient(model.loss(stored), live)
        model.tally.presentations += len(stored)
        dot = inner(grads, reference)
        if dot < 0:
            ratio = float(dot / inner(reference, reference))
            torch._foreach_add_(grads, reference, alpha=-self.strength * ratio)
