"""Hand-written rehearsal, for `whole_runs.py`.

Stored examples share a forward pass with the fresh ones if their gradients may be summed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from by_hand import BATCH, Hand, Rows, Run
from scipy.optimize import nnls
from torch import Tensor

CAPACITY, CLASSES = 1000, 10


class Buffer:
    """A reservoir of images, labels, tasks and outputs, allocated once."""

    def __init__(self) -> None:
        self.x, self.z = np.zeros((CAPACITY, 784), np.uint8), torch.zeros(CAPACITY, CLASSES)
        self.y, self.task = np.zeros(CAPACITY, np.int64), np.zeros(CAPACITY, np.int64)
        self.rng, self.offered = np.random.default_rng(0), 0

    def add(self, x: Tensor, y: Tensor, task: int) -> tuple[Rows, Rows]:
        """Store some of the batch; return which examples, and the rows of the buffer they got."""
        index = self.offered + np.arange(len(x))
        slot = np.where(index < CAPACITY, index, self.rng.integers(0, index + 1))
        kept = np.flatnonzero(slot < CAPACITY)
        self.offered += len(x)
        rows = slot[kept]
        self.x[rows], self.y[rows], self.task[rows] = x.numpy()[kept], y.numpy()[kept], task
        return kept, rows

    def draw(self, before: int | None = None) -> Rows:
        """Draw BATCH rows from all tasks, or from the tasks `before` this one."""
        size = min(self.offered, CAPACITY)
        if before is None:
            return self.rng.integers(0, size, BATCH)
        rows = np.zeros(0, np.int64)
        while len(rows) < BATCH:
            more = self.rng.integers(0, size, 2 * BATCH)
            rows = np.append(rows, more[self.task[more] < before])
        return rows[:BATCH]

    def read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.x[rows]), torch.from_numpy(self.y[rows])


def rehearsed(
    h: Hand,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    past_only: bool = False,
) -> Run:
    """Train with replay of stored examples.

    Args:
        h: The network and its data.
        loss: (outputs for fresh examples, their labels, outputs for stored examples, their labels,
            their stored outputs) -> the loss.
        past_only: Replay examples of ended tasks only.
    """
    buffer = Buffer()
    for k, phase in enumerate(h.phases):
        for x, y in h.batches(phase):
            drawn = (
                buffer.draw(k if past_only else None)
                if buffer.offered and (k or not past_only)
                else None
            )
            if drawn is None:
                z = h.outputs(x)
                h.backward(F.cross_entropy(z, y))
            else:
                stored, labels = buffer.read(drawn)
                z = h.outputs(torch.cat([x, stored]))
                h.backward(loss(z[: len(x)], y, z[len(x) :], labels, buffer.z[drawn]))
            kept, rows = buffer.add(x, y, k)
            buffer.z[rows] = z.detach()[kept]
            h.adam.step()
        yield


def replay(h: Hand) -> Run:
    return rehearsed(
        h,
        lambda z, y, old, labels, then: F.cross_entropy(z, y) + F.cross_entropy(old, labels),
        past_only=True,
    )


def der(h: Hand) -> Run:
    return rehearsed(
        h, lambda z, y, old, labels, then: F.cross_entropy(z, y) + 0.5 * F.mse_loss(old, then)
    )


def derpp(h: Hand) -> Run:
    n = BATCH // 2

    def loss(z: Tensor, y: Tensor, old: Tensor, labels: Tensor, then: Tensor) -> Tensor:
        return (
            F.cross_entropy(z, y)
            + 0.5 * F.mse_loss(old[:n], then[:n])
            + 0.5 * F.cross_entropy(old[n:], labels[n:])
        )

    return rehearsed(h, loss)


def er_ace(h: Hand) -> Run:
    seen = torch.zeros(CLASSES, dtype=torch.bool)

    def loss(z: Tensor, y: Tensor, old: Tensor, labels: Tensor, then: Tensor) -> Tensor:
        absent = seen.clone()
        absent[y] = False
        seen[y] = True
        return F.cross_entropy(z.masked_fill(absent, -torch.inf), y) + F.cross_entropy(old, labels)

    return rehearsed(h, loss)


def agem(h: Hand) -> Run:
    buffer = Buffer()
    for k, phase in enumerate(h.phases):
        for x, y in h.batches(phase):
            buffer.add(x, y, k)
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            if k:
                stored, labels = buffer.read(buffer.draw(k))
                reference = torch.autograd.grad(
                    F.cross_entropy(h.outputs(stored), labels), h.weights
                )
                dot = sum(
                    float(a.flatten() @ b.flatten()) for a, b in zip(grads, reference, strict=True)
                )
                if dot < 0:
                    size = sum(float(b.flatten() @ b.flatten()) for b in reference)
                    torch._foreach_add_(grads, reference, alpha=-dot / size)
            h.adam.step()
        yield


def gem(h: Hand) -> Run:
    """Train with GEM.

    The memory holds rows of the data, with equal parts for all tasks from the start. Ours divides
    its memory among the tasks so far.
    """
    part, rng = CAPACITY // len(h.phases), np.random.default_rng(0)
    memory = np.zeros((len(h.phases), part), np.int64)  # the last rows of each task
    for k, phase in enumerate(h.phases):
        for x, y in h.batches(phase):
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            if k:
                drawn = [h.examples(memory[i][rng.integers(0, part, BATCH)]) for i in range(k)]
                G = torch.stack(
                    [
                        flat(torch.autograd.grad(F.cross_entropy(h.outputs(x), y), h.weights))
                        for x, y in drawn
                    ]
                )
                dots = G @ flat(grads)
                if (dots < 0).any():
                    gram = (G @ G.T).double().numpy()
                    L = np.linalg.cholesky(gram + 1e-3 * np.eye(k))  # 1e-3 as in the authors' code
                    v = nnls(L.T, -np.linalg.solve(L, dots.double().numpy()))[0]
                    pull = torch.from_numpy(v).to(G) @ G
                    for g, add in zip(
                        grads, torch.split(pull, [g.numel() for g in grads]), strict=True
                    ):
                        g += add.view_as(g)
            h.adam.step()
        memory[k] = phase.rows.flatten()[-part:]
        yield


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
