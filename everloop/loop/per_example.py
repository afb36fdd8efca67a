"""Gradients of every example by itself, from one backward pass for all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from everloop.loop.batch import Batch

if TYPE_CHECKING:
    from everloop.loop.learner import Learner

Score = Callable[[Batch], Tensor]
Calls = dict[nn.Module, list[tuple[Tensor, GradientEdge | None]]]
CHUNK = 32  # examples at once: bounds the memory of per-example gradients, and the cost of the loop's backwards


def mean_powers(learner: Learner, batches: Iterable[Batch], score: Score, power: int, by_hooks: bool = True) -> dict[str, Tensor]:
    """mean over examples of sum_s |d score_s(example) / d w_i|^power, for each of `learner.weights()`.

    score: batch -> (S, B), S scalars of each example.
    The mean of powers, not the power of a minibatch's mean, so it does not depend on how the examples are batched.
    Linear, convolution and layer-norm layers cost one batched backward for all examples; parameters elsewhere (a
    GRU's) cost one backward each example. `by_hooks=False` loops for all: the same numbers, slowly.
    Raises ValueError without any example.
    """
    totals: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in learner.weights().values()}
    examples = 0
    with learner.judging():  # a batch norm in training would make every example's gradient one of all of them
        for batch in batches:
            for chunk in batch.split(CHUNK):
                examples += len(chunk)
                for p, sums in _powers(learner.module, chunk, score, power, by_hooks).items():
                    totals[p] += sums
    if not examples:
        raise ValueError("a mean over examples needs at least 1 of them, got 0")
    return {name: totals[p] / examples for name, p in learner.weights().items()}


@contextmanager
def recorded_layers(module: nn.Module, kinds: Callable[[nn.Module], bool]) -> Iterator[Calls]:
    """While the context lasts: each such layer's inputs, with the edges at which its outputs' gradients arrive.

    Layers that share a weight with another one are left out: no layer's own gradient is that weight's.
    """
    calls: Calls = defaultdict(list)

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # the edge, not the tensor: an activation in place would put its own result there
        calls[layer].append((inputs[0], get_gradient_edge(output) if output.requires_grad else None))

    owners = Counter(p for layer in module.modules() for p in layer._parameters.values())
    layers = [layer for layer in module.modules() if kinds(layer) and all(owners[p] == 1 for p in layer.parameters())]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _powers(module: nn.Module, batch: Batch, score: Score, power: int, by_hooks: bool) -> dict[Tensor, Tensor]:
    """Sum over the examples of powers of gradients, for every trainable parameter that has one."""
    with recorded_layers(module, _has_rule if by_hooks else lambda layer: False) as calls:
        scores = score(batch)
    rows = batch.length * len(batch)
    exact = {layer: c for layer, c in calls.items() if all(x.shape[0] == rows and edge is not None for x, edge in c)}
    edges = [edge for c in exact.values() for _, edge in c if edge is not None]
    covered = {p for layer in exact for p in layer.parameters()}
    rest: list[Tensor] = [p for p in module.parameters() if p.requires_grad and p not in covered]
    result: dict[Tensor, Tensor] = {}
    for values in scores:
        grads = iter(torch.autograd.grad(values.sum(), edges, retain_graph=True, allow_unused=True) if edges else ())
        sums: dict[Tensor, Tensor] = {}
        for layer, c in exact.items():
            used = [(x.detach().to(g.dtype), g) for (x, _) in c if (g := next(grads)) is not None]
            if used:
                sums |= _layer_powers(layer, used, len(batch), power)
        sums = {p: s for p, s in sums.items() if p.requires_grad} | _loop(values, rest, power)
        result = {p: result[p] + s if p in result else s for p, s in sums.items()} | {p: s for p, s in result.items() if p not in sums}
    return result


def _loop(values: Tensor, parameters: list[Tensor], power: int) -> dict[Tensor, Tensor]:
    """One backward each example: exact for any parameter."""
    totals = {p: torch.zeros_like(p) for p in parameters}
    for value in values if parameters else ():
        for p, g in zip(parameters, torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True), strict=True):
            if g is not None:
                totals[p] += g.abs() ** power
    return totals


def _has_rule(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine and len(layer.normalized_shape) == 1
    return isinstance(layer, nn.Linear)


def _layer_powers(layer: nn.Module, calls: list[tuple[Tensor, Tensor]], examples: int, power: int) -> dict[Tensor, Tensor]:
    """Sum over examples of powers of gradients of one layer, given its inputs and its outputs' gradients."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    x, g = calls[0]
    if isinstance(layer, nn.Linear) and len(calls) == 1 and x.shape[:-1] == (examples,):
        # one row each example: |g a'|^2 entrywise is g^2 (a^2)', no per-example gradient is ever formed
        G, A = g.abs() ** power, x.abs() ** power
        return {weight: einsum(G, A, "b o, b i -> o i")} | ({bias: G.sum(0)} if isinstance(bias, Tensor) else {})
    weights, biases = zip(*(_per_example(layer, x, g, examples) for x, g in calls), strict=True)
    sums = {weight: (torch.stack(weights).sum(0).abs() ** power).sum(0).reshape(weight.shape)}
    return sums | ({bias: (torch.stack(biases).sum(0).abs() ** power).sum(0)} if isinstance(bias, Tensor) else {})


def _per_example(layer: nn.Module, x: Tensor, g: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """Gradients of weight (b, ...) and bias (b, out): sums over an example's steps and positions."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x, g = rearrange(patches, "r i p -> r p i"), rearrange(g, "r o h w -> r (h w) o")
    g = _positions(g, examples)
    if isinstance(layer, nn.LayerNorm):
        normal = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return (g * _positions(normal, examples)).sum(1), g.sum(1)
    return einsum(g, _positions(x, examples), "b p o, b p i -> b o i"), g.sum(1)


def _positions(x: Tensor, examples: int) -> Tensor:
    """Rows (t b), with any positions between, -> (b, steps and positions, features)."""
    rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    return rearrange(rows, "(t b) p i -> b (t p) i", b=examples)
