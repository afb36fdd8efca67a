"""Hand-written meta-training before the first task, for `whole_runs.py`.

The first phase holds the rows of its batches, (iterations, steps, BATCH).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from by_hand import Hand, Rows, Run, none, pixels
from by_hand_exemplars import through
from torch import Tensor

STEPS = 5  # adaptation steps
INNER = 0.01  # learning rate of the adaptation steps
REPTILE = 0.5  # Reptile's outer step size
MAML = 1e-3  # MAML's outer learning rate


def pretrained(h: Hand, improve: Callable[[Hand, Rows], None]) -> Run:
    """Meta-train with `improve` on the rows of each iteration, then train plainly on all tasks."""
    meta, *h.phases = h.phases
    for rows in meta.rows:
        improve(h, rows)
    yield from none(h)


def reptile(h: Hand) -> Run:
    def improve(h: Hand, rows: Rows) -> None:
        start = h.copies()
        for x, y in map(h.examples, rows):
            grads = torch.autograd.grad(F.cross_entropy(h.outputs(x), y), h.weights)
            with torch.no_grad():
                torch._foreach_add_(h.weights, grads, alpha=-INNER)
        with torch.no_grad():
            torch._foreach_lerp_(h.weights, start, 1 - REPTILE)

    return pretrained(h, improve)


def maml(h: Hand) -> Run:
    adam = torch.optim.Adam(h.weights, MAML, fused=True)

    def improve(h: Hand, rows: Rows) -> None:
        adapted: list[Tensor] = h.weights
        for x, y in map(h.examples, rows[:STEPS]):
            grads = torch.autograd.grad(
                F.cross_entropy(through(pixels(x), adapted), y), adapted, create_graph=True
            )
            adapted = list(torch._foreach_sub(adapted, torch._foreach_mul(grads, INNER)))
        x, y = h.examples(rows[STEPS])
        grads = torch.autograd.grad(F.cross_entropy(through(pixels(x), adapted), y), h.weights)
        for w, g in zip(h.weights, grads, strict=True):
            w.grad = g
        adam.step()

    return pretrained(h, improve)
