"""GEM: projects gradients that would raise the loss of any past task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Traits, check_range
from everloop.loop.strategies.parts.gradients import gradient
from everloop.loop.strategies.parts.rehearsal import Rehearsal

BLOCK = 32_768
"""Number of weights whose copies in double precision fit into a processor's cache."""


class GEM(Rehearsal):
    """Projects each gradient so that, to first order, no ended task's stored loss can rise.

        g~ = argmin |g - g~|^2 / 2   with  g_k . g~ >= 0 for every ended task k
                                                      (Lopez-Paz & Ranzato 2017, eq. 8)
        g~ = G' v + g,  v = argmin_(v >= margin) v' G G' v / 2 + g' G' v
                                                      (eq. 11; G has the rows g_k)

    The guarantee holds for small steps of plain gradient descent. Larger steps, or an optimizer
    that rescales each weight, such as Adam, may still raise a past task's loss. Without a margin
    the losses then rise from task to task where classes are told apart without the task ID, of
    tasks that return as of others; `margin` counters this. Each update takes one more backward pass
    per ended task.

    Memory: a gradient for each ended task, besides the examples.

    Args:
        strength: Share of the projection that is applied, 0 or more; 0 is plain training. 1 is the
            method as published.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples of each ended task per update, 1 or more. The authors'
            code uses all of them, 256.
        margin: Minimum weight of each past task's gradient in a projection, 0 or more. A larger
            margin favours past tasks. 0 is eq. 11 as printed; the authors' code uses 0.5.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative. The paper uses ring, with equal parts for all tasks.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "gem"
    traits: ClassVar[Traits] = Traits(
        examples=True, copies=1, grows=True, class_incremental=True, rank={"class": 9, "other": 11}
    )

    def __init__(
        self,
        strength: float = 1.0,
        capacity: int = 1000,
        batch_size: int = 64,
        margin: float = 0.5,
        memory: str = "ring",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        check_range("margin", margin, 0)
        self.margin = margin
        self._gradients = torch.empty(0, 0)  # G, with g as one more row at the end

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        if not len(self.past):
            return
        live = [p for p in model.weights().values() if p.grad is not None]
        if not live:
            return
        drawn = [
            stored
            for task in self.past
            if (stored := self.draw(model, np.array([task]))) is not None
        ]
        if not drawn:
            return
        own = [p.grad for p in live if p.grad is not None]
        shape = (len(drawn) + 1, sum(g.numel() for g in own))
        old = self._gradients
        if old.shape != shape or old.device != own[0].device or old.dtype != own[0].dtype:
            # Kept between updates, since allocating it costs as much as filling it.
            self._gradients = own[0].new_empty(shape)
        G, g = self._gradients[:-1], self._gradients[-1]
        _fill(g, own)
        for row, stored in zip(G, drawn, strict=True):
            _fill(row, gradient(model.loss(stored), live))
            model.tally.presentations += len(stored)
        if bool((G @ g >= 0).all()):
            return
        products = _gram(self._gradients)
        v = solve_dual(products[:-1, :-1], products[:-1, -1], self.margin)
        change = self.strength * (torch.from_numpy(v).to(G) @ G)
        for p, part in zip(live, torch.split(change, [p.numel() for p in live]), strict=True):
            assert p.grad is not None
            p.grad += part.view_as(p)


def _fill(row: Tensor, gradients: Sequence[Tensor]) -> None:
    torch.cat([x.flatten() for x in gradients], out=row)


def solve_dual(
    P: npt.NDArray[np.float64], q: npt.NDArray[np.float64], margin: float = 0.0
) -> npt.NDArray[np.float64]:
    """Return argmin_(v >= margin) v' P v / 2 + q' v, by non-negative least squares.

    Let P = U diag(s) U', A = diag(s)^(1/2) U' and u = v - margin. Then the problem is

        min over u >= 0 of |A u + diag(s)^(-1/2) U' (q + P margin)|^2      (Lawson & Hanson 1974)

    s has a lower bound above the rounding error, since the gradients of tasks may be linearly
    dependent.

    Args:
        P: A positive semi-definite matrix (k, k).
        q: A vector (k,).
        margin: Lower bound of each component of v, 0 or more.
    """
    from scipy.optimize import nnls  # loading it takes a tenth of a second, and only GEM needs it

    s, U = np.linalg.eigh(P)
    root = np.sqrt(np.maximum(s, 1e-13 * s.max() + 1e-30))
    shifted = q + P @ np.full(len(q), margin)
    u: npt.NDArray[np.float64] = nnls(root[:, None] * U.T, -(U.T @ shifted) / root)[0]
    return u + margin


def _gram(G: Tensor) -> npt.NDArray[np.float64]:
    """Return the Gram matrix G G', computed block by block in double precision.

    In single precision it would be indefinite where the gradients of tasks are nearly equal.
    """
    gram = torch.zeros(len(G), len(G), dtype=torch.float64, device=G.device)
    for rows in torch.split(G, BLOCK, 1):
        exact = rows.double()
        gram.addmm_(exact, exact.T)
    return gram.cpu().numpy()
