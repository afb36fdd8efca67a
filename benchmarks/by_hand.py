"""Hand-written strategies, which `whole_runs.py` compares with ours.

Each is a loop over arrays in memory, as short and fast as possible. Every function trains through
all tasks and yields after each.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.agents import Classifier
from everloop.envs import Examples

BATCH, RATE = 128, 1e-3
Rows = npt.NDArray[np.int64]
Run = Iterator[None]  # each step trains one task


class Phase(NamedTuple):
    """Rows of one task: those of every update (updates, BATCH), and those at its end (END,)."""

    rows: Rows
    end: Rows


class Hand:
    """The network, its optimizer and the data of a hand-written loop."""

    def __init__(self, module: Classifier, data: Examples, phases: list[Phase]) -> None:
        self.net = nn.Sequential(
            *module.backbone.get_submodule("layers").children(), module.heads.linear
        )
        self.weights: list[Tensor] = list(self.net.parameters())
        self.phases = phases
        self.adam = torch.optim.Adam(self.weights, lr=RATE, fused=True)
        self.images, self.labels = data.inputs.reshape(len(data), -1), data.labels

    def examples(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])

    def batches(self, phase: Phase) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.examples, phase.rows)

    def outputs(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(pixels(x))
        return z

    def backward(self, loss: Tensor) -> list[Any]:
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in self.weights]

    def copies(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.weights]


def pixels(x: Tensor) -> Tensor:
    return x.to(torch.get_default_dtype()).div_(255.0)


def none(h: Hand) -> Run:
    for phase in h.phases:
        for x, y in h.batches(phase):
            h.backward(F.cross_entropy(h.outputs(x), y))
            h.adam.step()
        yield


def pulled(
    h: Hand, strength: float, importance: Callable[[Hand, Tensor, Tensor], list[Tensor]], mean: bool
) -> Run:
    """Train with a quadratic penalty: EWC or MAS.

    Args:
        h: The network and its data.
        strength: Factor of the penalty's gradient.
        importance: (h, inputs, labels) -> the importance of each weight.
        mean: Anchor at the mean of the tasks' weights, weighted by importance (EWC), instead of at
            the last task's weights (MAS).
    """
    P: list[Tensor] = []
    c, shift = h.copies(), h.copies()
    for phase in h.phases:
        for x, y in h.batches(phase):
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            for p, g, P_i, c_i, out in zip(h.weights, grads, P, c, shift, strict=False):
                g.addcmul_(torch.sub(p.detach(), c_i, out=out), P_i, value=strength)
            h.adam.step()
        new, now = importance(h, *h.examples(phase.end)), h.copies()
        P = [a + b for a, b in zip(P, new, strict=True)] if P else new
        c = (
            [
                c_i + F_i / P_i.clamp(min=torch.finfo(P_i.dtype).tiny) * (w - c_i)
                for c_i, P_i, F_i, w in zip(c, P, new, now, strict=True)
            ]
            if mean
            else now
        )
        yield


def powers(h: Hand, x: Tensor, score: Callable[[Tensor], Tensor], power: int) -> list[Tensor]:
    """Return the mean over examples of |gradient|^power for each weight.

    For each layer this is (|g|^power)' a^power, from one backward pass for all examples.
    """
    z, inputs, outs = pixels(x), [], []
    for layer in h.net:
        if isinstance(layer, nn.Linear):
            inputs.append(z.detach() ** power)
            outs.append(layer(z))
        z = outs[-1] if isinstance(layer, nn.Linear) else layer(z)
    grads = [g.abs() ** power / len(x) for g in torch.autograd.grad(score(z), outs)]
    return [value for a, g in zip(inputs, grads, strict=True) for value in (g.T @ a, g.sum(0))]


def ewc(h: Hand) -> Run:
    return pulled(
        h,
        100.0,
        lambda h, x, y: powers(h, x, lambda z: F.cross_entropy(z, y, reduction="sum"), 2),
        mean=True,
    )


def mas(h: Hand) -> Run:
    return pulled(h, 0.2, lambda h, x, y: powers(h, x, lambda z: (z**2).sum(), 1), mean=False)


def learn_near(
    h: Hand, phase: Phase, c: list[Tensor], strength: float, shift: list[Tensor]
) -> None:
    """Train on one task with g += strength * (w - c); without anchors `c`, plainly."""
    for x, y in h.batches(phase):
        grads = h.backward(F.cross_entropy(h.outputs(x), y))
        for p, g, c_i, out in zip(h.weights, grads, c, shift, strict=False):
            g.add_(torch.sub(p.detach(), c_i, out=out), alpha=strength)
        h.adam.step()


def l2(h: Hand) -> Run:
    c: list[Tensor] = []
    shift = h.copies()
    for phase in h.phases:
        learn_near(h, phase, c, 0.1, shift)
        c = h.copies()
        yield


class Pulled:
    """Steps with a penalty's gradient 2 P (w - c) that add g (w before - w after) to omega."""

    def __init__(self, h: Hand) -> None:
        self.h = h
        self.c, self.before, self.pull, self.shift = (h.copies() for _ in range(4))
        self.P, self.omega = [[torch.zeros_like(p) for p in h.weights] for _ in range(2)]

    def step(self, grads: list[Tensor]) -> None:
        h = self.h
        for p, g, P_i, c_i, b, out, s in zip(
            h.weights, grads, self.P, self.c, self.before, self.pull, self.shift, strict=True
        ):
            b.copy_(p.detach())
            p.grad = torch.addcmul(g, torch.sub(b, c_i, out=s), P_i, value=2.0, out=out)
        h.adam.step()
        for p, g, b, o in zip(h.weights, grads, self.before, self.omega, strict=True):
            o.addcmul_(g, b.sub_(p.detach()))


def si(h: Hand) -> Run:
    start, path = h.copies(), Pulled(h)
    for phase in h.phases:
        for x, y in h.batches(phase):
            path.step(h.backward(F.cross_entropy(h.outputs(x), y)))
        path.c = c = h.copies()
        for P_i, o, w, s in zip(path.P, path.omega, c, start, strict=True):
            P_i += o.clamp(min=0) / ((w - s) ** 2 + 0.1)
            o.zero_()
        start = c
        yield


def lwf(h: Hand) -> Run:
    teacher, T = copy.deepcopy(h.net), 2.0
    seen = torch.zeros(0, dtype=torch.int64)
    for k, phase in enumerate(h.phases):
        for x, y in h.batches(phase):
            z = h.outputs(x)
            loss = F.cross_entropy(z, y)
            if k:
                with torch.no_grad():
                    target = F.log_softmax(teacher(pixels(x))[:, seen] / T, -1)
                loss = loss + k * T**2 * F.kl_div(
                    F.log_softmax(z[:, seen] / T, -1),
                    target,
                    log_target=True,
                    reduction="batchmean",
                )
            h.backward(loss)
            h.adam.step()
        teacher = copy.deepcopy(h.net)
        seen = torch.unique(torch.cat([seen, h.examples(phase.end)[1]]))
        yield


def packnet(h: Hand) -> Run:
    owner = [torch.zeros_like(p, dtype=torch.int16) for p in h.weights]
    free, owned, kept = (
        [torch.full_like(p, value) for p in h.weights] for value in (1.0, 0.0, 0.0)
    )
    generator = torch.Generator().manual_seed(0)
    for k, phase in enumerate(h.phases, 1):
        for x, y in h.batches(phase):
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            if k > 1:
                torch._foreach_mul_(grads, free)
            h.adam.step()
            if k > 1:
                with torch.no_grad():
                    torch._foreach_lerp_(h.weights, kept, owned)
        claim(h, owner, k)
        retrain(h, [(o == k).to(torch.get_default_dtype()) for o in owner], phase, generator)
        kept, owned = h.copies(), [(o > 0).to(torch.get_default_dtype()) for o in owner]
        free = [1 - o for o in owned]
        yield


@torch.no_grad()
def claim(h: Hand, owner: list[Tensor], k: int) -> None:
    """Give task k half of the free weights of every matrix, and the first task all biases.

    The other free weights become 0.
    """
    for p, o in zip(h.weights, owner, strict=True):
        if p.ndim < 2:
            o[o == 0] = 1
        else:
            order = p.abs().masked_fill(o > 0, -1.0).flatten().argsort(descending=True, stable=True)
            o.flatten()[order[: round(0.5 * int((o == 0).sum()))]] = k
            p[o == 0] = 0.0


def retrain(h: Hand, own: list[Tensor], phase: Phase, generator: torch.Generator) -> None:
    """Retrain the task's own weights, with as many updates as the task had."""
    x, y = h.examples(phase.end)
    adam = torch.optim.Adam(h.weights, lr=RATE, fused=True)
    before = h.copies()
    for _ in phase.rows:
        torch.randint(
            1, (), generator=generator
        )  # ours draws a batch here, of which there is only one
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        torch._foreach_mul_(h.backward(F.cross_entropy(h.outputs(x[rows]), y[rows])), own)
        adam.step()
        with torch.no_grad():
            for p, b, o in zip(h.weights, before, own, strict=True):
                torch.lerp(b, p, o, out=p)
