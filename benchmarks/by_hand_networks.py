"""Hand-written strategies that change the network, for `whole_runs.py`.

Each leaves `h.weights` in the order of our network's parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from by_hand import Hand, Run, pixels
from by_hand_plasticity import linear_layers, next_seed
from torch import Tensor, nn

RANK = 8


def hat(h: Hand) -> Run:
    generator = torch.Generator().manual_seed(0)
    *hidden, head = linear_layers(h)
    body = h.weights[:-2]
    past = [torch.zeros(layer.out_features) for layer in hidden]
    used: list[Tensor] = []
    kept: list[Tensor] = []
    tasks: list[tuple[list[Tensor], list[Tensor]]] = []  # masks and last layer, for evaluation
    for phase in h.phases:
        e = [torch.randn(len(u), generator=generator) for u in past]
        total = sum(float((1 - u).sum()) for u in past)
        sparsity = [0.75 * (1 - u) / max(total, 1.0) for u in past]
        free = [1 - u for u in used]
        for i, (x, y) in enumerate(h.batches(phase)):
            s = 1 / 400 + (400 - 1 / 400) * (i % 100) / 99
            a: list[Any] = [torch.sigmoid((s * e_i).clamp(min=-16.0)).requires_grad_() for e_i in e]
            z = pixels(x)
            for layer, a_i in zip(hidden, a, strict=True):
                z = F.relu(layer(z) * a_i)
            grads = h.backward(F.cross_entropy(head(z), y))[:-2]
            if used:
                torch._foreach_mul_(grads, free)
            h.adam.step()
            with torch.no_grad():
                if used:
                    torch._foreach_lerp_(body, kept, used)
                for e_i, a_i, pull in zip(e, a, sparsity, strict=True):
                    slope = torch.sigmoid(e_i) * torch.sigmoid(-e_i) * ((s * e_i).abs() <= 50.0)
                    e_i.sub_(0.05 * 400 * slope * (a_i.grad + pull)).clamp_(-6.0, 6.0)
        past = [
            torch.maximum(u, (e_i > 0).to(torch.get_default_dtype()))
            for u, e_i in zip(past, e, strict=True)
        ]
        used = [
            past[0][:, None].expand_as(hidden[0].weight).contiguous(),
            past[0],
            torch.minimum(past[1][:, None], past[0]),
            past[1],
        ]
        now = h.copies()
        kept = now[:-2]
        tasks.append((e, now[-2:]))
        next_seed(generator)  # ours draws the noise here that shows which inputs are used
        yield


def lora(h: Hand) -> Run:
    generator = torch.Generator().manual_seed(0)
    *hidden, head = linear_layers(h)
    down: list[list[Tensor]] = [[] for _ in hidden]  # A of each task
    up: list[list[Tensor]] = [[] for _ in hidden]  # B
    heads: list[list[Tensor]] = []
    for k, phase in enumerate(h.phases):
        if k:
            torch.manual_seed(next_seed(generator))
            for layer, A, B in zip(hidden, down, up, strict=True):
                layer.requires_grad_(False)
                new = (
                    nn.Linear(layer.in_features, RANK, bias=False),
                    nn.Linear(RANK, layer.out_features, bias=False),
                )
                new[0].reset_parameters()  # peft draws these weights twice
                A.append(new[0].weight)
                B.append(nn.init.zeros_(new[1].weight))
            h.adam.zero_grad()
            h.adam.add_param_group(
                {"params": [part[-1] for pair in zip(down, up, strict=True) for part in pair]}
            )
        for x, y in h.batches(phase):
            z = pixels(x)
            for layer, A, B in zip(hidden, down, up, strict=True):
                z = F.relu(layer(z) + F.linear(F.linear(z, A[-1]), B[-1]) * 2.0 if k else layer(z))
            h.backward(F.cross_entropy(head(z), y))
            h.adam.step()
        heads.append(h.copies()[-2:])
        h.weights = [
            p
            for layer, A, B in zip(hidden, down, up, strict=True)
            for p in (*layer.parameters(), *A, *B)
        ]
        h.weights += head.parameters()
        yield


def progressive(h: Hand) -> Run:
    """Train progressive columns.

    Only the first layers of earlier columns are read. They are computed at once for all columns.
    """
    generator = torch.Generator().manual_seed(0)
    first, second, head = linear_layers(h)
    columns: list[list[Tensor]] = [[*first.parameters(), *second.parameters()]]
    frozen = [torch.zeros(0, first.in_features), torch.zeros(0)]
    lateral: nn.Linear | None = None
    heads: list[list[Tensor]] = []
    for k, phase in enumerate(h.phases):
        if k:
            torch.manual_seed(next_seed(generator))
            frozen = [
                torch.cat([a, b.detach()]) for a, b in zip(frozen, first.parameters(), strict=True)
            ]
            for p in columns[-1]:
                p.requires_grad_(False)
            h.adam.zero_grad()
            first, second = (
                nn.Linear(first.in_features, first.out_features),
                nn.Linear(second.in_features, second.out_features),
            )
            lateral = nn.Linear(len(frozen[0]), second.out_features, bias=False)
            columns.append([p for layer in (first, second, lateral) for p in layer.parameters()])
            h.adam.add_param_group({"params": columns[-1]})
        for x, y in h.batches(phase):
            z = pixels(x)
            sums = second(F.relu(first(z)))
            if lateral is not None:
                sums = sums + lateral(F.relu(F.linear(z, *frozen)))
            h.backward(F.cross_entropy(head(F.relu(sums)), y))
            h.adam.step()
        heads.append(h.copies()[-2:])
        h.weights = [p for column in columns for p in column] + list(head.parameters())
        yield


def growth(h: Hand) -> Run:
    generator, patience = torch.Generator().manual_seed(0), len(h.phases[0].rows) // 2
    first, second, head = linear_layers(h)
    branches: list[nn.Sequential] = []
    for phase in h.phases:
        losses: list[float] = []
        for x, y in h.batches(phase):
            z = pixels(x)
            sums = second(F.relu(first(z)))
            for branch in branches:
                sums = sums + branch(z)
            loss = F.cross_entropy(head(F.relu(sums)), y)
            losses.append(loss.item())
            h.backward(loss)
            h.adam.step()
            if len(losses) == patience and len(branches) < 10:
                if sum(losses) / patience > 0.3:
                    torch.manual_seed(next_seed(generator))
                    up, down = (
                        nn.Linear(first.in_features, 64),
                        nn.Linear(64, second.out_features, bias=False),
                    )
                    nn.init.zeros_(down.weight)
                    branches.append(nn.Sequential(up, nn.ReLU(), down))
                    h.adam.add_param_group({"params": list(branches[-1].parameters())})
                losses = []
        h.weights = [p for part in (first, second, *branches, head) for p in part.parameters()]
        yield
