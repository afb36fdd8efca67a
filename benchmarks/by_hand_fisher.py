"""Hand-written RWalk and Kronecker-factored EWC, for `whole_runs.py`.

Both use Fisher information with labels drawn from the model.
"""

from functools import partial

import torch
import torch.nn.functional as F
from by_hand import Hand, Pulled, Run, pixels, powers
from by_hand_plasticity import linear_layers, next_seed
from torch import Tensor, nn


def drawn_loss(z: Tensor, seed: int) -> Tensor:
    """Return the summed cross-entropy with labels drawn from the model's softmax of `z`."""
    labels = torch.multinomial(
        z.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(seed)
    )[:, 0]
    return F.cross_entropy(z, labels, reduction="sum")


def scaled(values: list[Tensor]) -> list[Tensor]:
    """Return `values` divided by the largest entry of all of them."""
    largest = max(float(v.max()) for v in values)
    return [v / largest for v in values]


def rwalk(h: Hand) -> Run:
    generator, interval = torch.Generator().manual_seed(0), len(h.phases[0].rows) // 4
    start, path = h.copies(), Pulled(h)
    score = [torch.zeros_like(p) for p in h.weights]
    fisher: list[Tensor] = []
    past: list[Tensor] = []

    @torch.no_grad()
    def close_interval() -> None:
        for p, s, o, F_i, total in zip(h.weights, start, path.omega, fisher, score, strict=True):
            total += o.clamp(min=0) / (F_i * (p - s) ** 2 / 2 + 1e-3)
            o.zero_()
            s.copy_(p)

    for phase in h.phases:
        for i, (x, y) in enumerate(h.batches(phase)):
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            if i % interval == 0:
                if fisher:
                    close_interval()
                new = powers(h, x, partial(drawn_loss, seed=next_seed(generator)), 2)
                fisher = (
                    [0.1 * a + 0.9 * b for a, b in zip(fisher, new, strict=True)] if fisher else new
                )
            path.step(grads)
        close_interval()
        now = scaled(score)
        past = [(a + b) / 2 for a, b in zip(past, now, strict=True)] if past else now
        path.P, path.c = [a + b for a, b in zip(scaled(fisher), past, strict=True)], h.copies()
        torch._foreach_zero_(score)
        yield


def with_bias(layer: nn.Linear) -> Tensor:
    """Return weight and bias as one matrix (out, in + 1)."""
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)


def ewc_kfac(h: Hand) -> Run:
    generator, layers = torch.Generator().manual_seed(0), linear_layers(h)
    Anchor = tuple[Tensor, Tensor, Tensor]  # A, G and the weights at a task's end
    held: list[list[Anchor]] = [[] for _ in layers]
    for phase in h.phases:
        for x, y in h.batches(phase):
            grads = h.backward(F.cross_entropy(h.outputs(x), y))
            for layer, tasks, g, g_bias in (
                zip(layers, held, grads[::2], grads[1::2], strict=True) if held[0] else ()
            ):
                now = with_bias(layer)
                pull = torch.zeros_like(now)
                for A, G, then in tasks:
                    pull.addmm_(G @ (now - then), A)
                g.add_(pull[:, :-1], alpha=100.0)
                g_bias.add_(pull[:, -1], alpha=100.0)
            h.adam.step()
        z, inputs, outs = pixels(h.examples(phase.end)[0]), [], []
        for layer in layers:
            inputs.append(F.pad(z.detach(), (0, 1), value=1.0))
            outs.append(layer(z))
            z = F.relu(outs[-1])
        edges = torch.autograd.grad(drawn_loss(outs[-1], next_seed(generator)), outs)
        for layer, tasks, a, g in zip(layers, held, inputs, edges, strict=True):
            tasks.append((a.T @ a / len(a), g.T @ g / len(a), with_bias(layer)))
        yield
