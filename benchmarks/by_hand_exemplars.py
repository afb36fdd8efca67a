"""Hand-written strategies with their own choice or use of stored examples, for `whole_runs.py`."""

import copy
import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from by_hand import BATCH, RATE, Hand, Run, pixels
from by_hand_rehearsal import CAPACITY, CLASSES, Buffer
from torch import Tensor, nn

SMALL, FULL_RATE = 16, 0.05  # GDumb's batch size and initial learning rate


def through(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the MLP's outputs for `x` with `weights` (matrix, bias, matrix, bias, ...)."""
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = F.relu(F.linear(x, w, b))
    return F.linear(x, *weights[-2:])


def mir(h: Hand) -> Run:
    buffer = Buffer()
    for k, phase in enumerate(h.phases):
        for x, y in h.batches(phase):
            size = min(buffer.offered, CAPACITY)
            stored, labels = buffer.read(buffer.rng.choice(size, min(BATCH, size), replace=False))
            buffer.add(x, y, k)
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            if not size:
                h.adam.step()
                continue
            candidates = pixels(stored)
            with torch.no_grad():
                ahead = list(torch._foreach_add(h.weights, grads, alpha=-RATE))
                hurt = F.cross_entropy(through(candidates, ahead), labels, reduction="none")
                hurt -= F.cross_entropy(h.net(candidates), labels, reduction="none")
            worst = hurt.topk(BATCH // 2).indices
            F.cross_entropy(h.net(candidates[worst]), labels[worst]).backward()  # type: ignore[no-untyped-call]
            h.adam.step()
        yield


def la_maml(h: Hand) -> Run:
    """Train La-MAML in first order; the fast weights step on each fifth of the fresh batch.

    The slow weights need no optimizer.
    """
    buffer, size = Buffer(), -(-BATCH // 5)
    rates = [torch.full_like(p, 0.1) for p in h.weights]
    for k, phase in enumerate(h.phases):
        for x, y in h.batches(phase):
            rows = buffer.draw() if buffer.offered else np.zeros(0, np.int64)
            stored, labels = buffer.read(rows)
            buffer.add(x, y, k)
            with torch.no_grad():
                h.outputs(x)  # the guess that a world would require
            z, together = pixels(torch.cat([x, stored])), torch.cat([y, labels])
            fast, steps = [p.detach() for p in h.weights], [-r.clamp(min=0) for r in rates]
            led, meta, drift = ([torch.zeros_like(p) for p in h.weights] for _ in range(3))
            for part, target in zip(
                torch.split(z[:BATCH], size), torch.split(y, size), strict=True
            ):
                grads = slopes(fast, part, target)
                torch._foreach_add_(led, grads)
                fast = list(torch._foreach_addcmul(fast, steps, grads))
                grads = slopes(fast, z, together)
                torch._foreach_add_(meta, grads)
                torch._foreach_addcmul_(drift, grads, led)
            torch._foreach_add_(rates, drift, alpha=0.1 / 5)
            with torch.no_grad():
                torch._foreach_addcmul_(
                    h.weights, [r.clamp(min=0) for r in rates], meta, value=-1 / 5
                )
        yield


def slopes(weights: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the gradient of the cross-entropy with respect to `weights`."""
    leaves = [w.detach().requires_grad_() for w in weights]
    return list(torch.autograd.grad(F.cross_entropy(through(x, leaves), y), leaves))


def icarl(h: Hand) -> Run:
    rng, teacher, capacity = np.random.default_rng(0), None, 5 * len(h.phases[0].rows)
    exemplars: dict[int, Tensor] = {}
    for phase in h.phases:
        old = list(exemplars)
        images = torch.cat(list(exemplars.values())) if old else torch.zeros(0)
        labels = torch.tensor([label for label, kept in exemplars.items() for _ in kept])
        for x, y in h.batches(phase):
            if teacher is not None:
                rows = torch.from_numpy(rng.integers(0, len(images), BATCH))
                x, y = torch.cat([x, images[rows]]), torch.cat([y, labels[rows]])
            z = pixels(x)
            target = F.one_hot(y, CLASSES).to(torch.get_default_dtype())
            if teacher is not None:
                with torch.no_grad():
                    target[:, old] = torch.sigmoid(teacher(z)[:, old])
            h.backward(
                F.binary_cross_entropy_with_logits(h.net(z), target, reduction="sum") / BATCH
            )
            h.adam.step()
        choose(h, capacity, exemplars, *h.examples(phase.end))
        teacher = copy.deepcopy(h.net)
        yield


@torch.no_grad()
def choose(h: Hand, capacity: int, exemplars: dict[int, Tensor], x: Tensor, y: Tensor) -> None:
    """Choose the new classes' exemplars, with an equal share of `capacity` for each class."""
    new = sorted(set(y.tolist()) - set(exemplars))
    share = capacity // (len(exemplars) + len(new))
    for label, kept in exemplars.items():
        exemplars[label] = kept[:share]
    features = F.normalize(h.net[:-1](pixels(x)), dim=1)
    for label in new:
        exemplars[label] = x[y == label][herded(features[y == label], share)]


def herded(features: Tensor, count: int) -> list[int]:
    """Return rows in the order of herding: each brings the mean of the chosen nearest to the mean.

    In double precision, because the nearest candidates hardly differ.
    """
    features = features.double()
    squares, missing, order = features.square().sum(1), features.mean(0), list[int]()
    mean = missing.clone()
    for _ in range(min(count, len(features))):
        order.append(int(torch.addmv(squares, features, missing, alpha=-2).argmin()))
        squares[order[-1]] = torch.inf
        missing += mean - features[order[-1]]
    return order


class Balanced:
    """A class-balanced memory: a uniform sample of each class, with sizes as equal as possible.

    Chrysakis & Moens 2020, algorithm 1.
    """

    def __init__(self) -> None:
        self.x, self.y = np.zeros((CAPACITY, 784), np.uint8), np.zeros(CAPACITY, np.int64)
        self.rng, self.size = np.random.default_rng(0), 0
        self.rows: dict[int, list[int]] = {}
        self.seen: Counter[int] = Counter()

    def add(self, x: Tensor, y: Tensor) -> None:
        for image, label, chances in zip(
            x.numpy(), y.tolist(), self.rng.random((len(x), 2)).tolist(), strict=True
        ):
            row = self.place(label, *chances)
            if row >= 0:
                self.x[row], self.y[row] = image, label
                self.rows[label].append(row)

    def place(self, label: int, chance: float, choice: float) -> int:
        """Return the row for an example of the class, or -1 if it is not stored."""
        rows = self.rows.setdefault(label, [])
        self.seen[label] += 1
        if self.size < CAPACITY:
            self.size += 1
            return self.size - 1
        most = max(map(len, self.rows.values()))
        all_kept = len(rows) + 1 == self.seen[label]  # of this class, before this example
        if len(rows) < most and all_kept:
            largest = [rows for rows in self.rows.values() if len(rows) == most]
            rows = largest[int(chance * len(largest))]
        elif chance * self.seen[label] >= len(rows):
            return -1
        i = int(choice * len(rows))
        rows[i], rows[-1] = rows[-1], rows[i]
        return rows.pop()


def gdumb(h: Hand) -> Run:
    initial, memory, epochs = h.copies(), Balanced(), 3 * len(h.phases[0].rows) // 20
    for phase in h.phases:
        for x, y in h.batches(phase):
            with torch.no_grad():
                h.outputs(x)  # the guess that a world would require
            memory.add(x, y)
        with torch.no_grad():
            torch._foreach_copy_(h.weights, initial)
        sgd = torch.optim.SGD(h.weights, FULL_RATE, momentum=0.9, weight_decay=1e-6, fused=True)
        parts = -(-memory.size // SMALL)
        for i in range(epochs):
            for j, rows in enumerate(np.array_split(memory.rng.permutation(memory.size), parts)):
                way = (1 + math.cos(math.pi * (i * parts + j) / (epochs * parts))) / 2
                sgd.param_groups[0]["lr"] = FULL_RATE * (0.01 + 0.99 * way)
                h.backward(
                    F.cross_entropy(
                        h.outputs(torch.from_numpy(memory.x[rows])),
                        torch.from_numpy(memory.y[rows]),
                    )
                )
                nn.utils.clip_grad_norm_(h.weights, 10.0)
                sgd.step()
        yield
