"""EWC with a Kronecker-factored Fisher matrix for each linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.contract import Task
from everloop.loop.batch import Batch, subsample
from everloop.loop.importance.fisher import diagonal_fisher
from everloop.loop.importance.per_example import recorded_layers
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range, check_strength
from everloop.loop.strategies.parts.quadratic import Quadratic, snapshot
from everloop.loop.strategies.parts.rng import generator_for
from everloop.loop.strategies.parts.warning import ClassIncrementalWarning

Factors = tuple[Tensor, Tensor, Tensor]
"""A (i, i), G (o, o) and W* (o, i) of a layer; i includes the bias."""


class KroneckerEWC(Strategy):
    """EWC with Fisher information that includes interactions between the weights of a layer.

        penalty = strength / 2 * sum_k vec(W - W_k)' (A_k x G_k) vec(W - W_k)
                                                      (Ritter et al. 2018, section 3)
        grad W += strength * sum_k G_k (W - W_k) A_k

    W_k are the layer's weights (o, i) at the end of task k. A_k is the mean over steps of a a',
    where a are the layer's inputs, with a 1 for the bias. G_k is the mean over examples of g g',
    where g is the gradient of log p(x) at the layer's outputs and x is sampled from the model.
    Weights outside torch's linear layers are anchored with their diagonal Fisher information.

    Memory: for each task and layer its weights and i^2 + o^2 numbers, so it grows with the number
    of tasks. If that is too much, use EWC.

    Args:
        strength: Lambda, the weight of the penalty, 0 or more; 0 is plain training. Tune it; the
            default was not checked against the paper.
        examples: Examples per finished task for estimating the factors, 1 or more.
        seed: Seed for labels or actions sampled from the model.
    """

    name = "ewc_kfac"
    traits: ClassVar[Traits] = Traits(copies=3, grows=True, rank={"other": 10})
    state = ("layers", "generator", "rest", "warning")

    def __init__(self, strength: float = 100.0, examples: int = 512, seed: int = 0) -> None:
        check_range("examples", examples, 1)
        self.strength, self.examples = check_strength(strength), examples
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, list[Factors]] = {}  # by the layer's name
        self.rest, self.warning = Quadratic(), ClassIncrementalWarning("ewc_kfac")

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        self.rest.add_gradient(model, self.strength)
        for name, tasks in self.layers.items():
            layer = model.module.get_submodule(name)
            if not isinstance(layer, nn.Linear) or layer.weight.grad is None:
                continue  # the layer is frozen, or an adapter wraps and freezes it
            now = _weights(layer)
            gradient = torch.zeros_like(now)
            for A, G, anchor in tasks:
                gradient.addmm_(G @ (now - anchor), A, alpha=self.strength)
            layer.weight.grad += gradient[:, : layer.in_features]
            if layer.bias is not None and layer.bias.grad is not None:
                layer.bias.grad += gradient[:, -1]

    def end_task(self, task: Task, batches: Sequence[Batch], model: Model) -> None:
        self.warning.check(model, batches)
        taken = subsample(batches, self.examples)
        factors = self._factors(model, taken)
        names = {layer: name for name, layer in model.module.named_modules()}
        covered = {
            f"{names[layer]}.{part}" for layer in factors for part, _ in layer.named_parameters()
        }
        for layer, (A, G) in factors.items():
            self.layers.setdefault(names[layer], []).append((A, G, _weights(layer).clone()))
        if model.weights().keys() - covered:
            diagonal = diagonal_fisher(model, taken, generator_for(model, self.generator))
            rest = {name: F for name, F in diagonal.items() if name not in covered}
            self.rest.add(rest, snapshot(model))

    def _factors(
        self, model: Model, batches: Sequence[Batch]
    ) -> dict[nn.Linear, tuple[Tensor, Tensor]]:
        """Return A and G of every linear layer that is called once, with one row per step."""
        sums: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
        steps = examples = 0
        for batch in batches:
            recorded = recorded_layers(model.module, _is_trained_linear)
            with model.evaluating(gradients=True), recorded as calls:
                log_p = model.log_likelihood(batch, generator_for(model, self.generator))
            rows = batch.length * len(batch)
            once = {
                layer: c[0]
                for layer, c in calls.items()
                if len(c) == 1 and c[0][0].shape[:-1] == (rows,) and c[0][1] is not None
            }
            edges = [edge for _, edge in once.values() if edge is not None]
            gradients = torch.autograd.grad(log_p.sum(), edges, allow_unused=True) if edges else ()
            steps, examples = steps + rows, examples + len(batch)
            for (layer, (x, _)), g in zip(once.items(), gradients, strict=True):
                if g is not None and isinstance(layer, nn.Linear):
                    a, g = x.detach().to(layer.weight.dtype), g.to(layer.weight.dtype)
                    a = F.pad(a, (0, 1), value=1.0) if layer.bias is not None else a
                    A, G = sums.get(layer, (0.0, 0.0))
                    sums[layer] = (A + a.T @ a, G + g.T @ g)
        return {layer: (A / steps, G / examples) for layer, (A, G) in sums.items()}


def _is_trained_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.weight.requires_grad


def _weights(layer: nn.Linear) -> Tensor:
    """Return the layer's weights (o, i), with the bias as the last column."""
    weight = layer.weight.detach()
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach()[:, None]], 1)
