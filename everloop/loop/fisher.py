"""The diagonal Fisher information: the mean of squared per-example gradients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from everloop.loop.batch import Batch

if TYPE_CHECKING:
    from everloop.loop.learner import Learner

Call = tuple[Tensor, Tensor]  # a layer's input and its output's gradient
CHUNK = 32  # examples at once: bounds the memory of per-example gradients, and the cost of the loop's backwards


def diagonal_fisher(
    learner: Learner, batches: Iterable[Batch], generator: torch.Generator | None = None, by_hooks: bool = True
) -> list[Tensor]:
    """F_i = mean over examples of (d log p(x | example) / d w_i)^2, one tensor for each trainable parameter.

    x is drawn from the model if there is a generator (the Fisher information proper), else it is what the
    batch holds (the "empirical Fisher"; Kunstner et al. 2019 on the difference). The mean of squares,
    not the square of a minibatch's mean, so it does not depend on how the examples are batched.

    Linear, convolution and layer-norm layers cost one batched backward for all examples; parameters
    elsewhere (a GRU's) cost one backward each example. `by_hooks=False` loops for all: the same numbers, slowly.
    Raises ValueError without any example.
    """
    parameters: list[Tensor] = [p for p in learner.module.parameters() if p.requires_grad]
    totals = {p: torch.zeros_like(p) for p in parameters}
    examples = 0
    for batch in batches:
        for chunk in batch.split(CHUNK):
            examples += len(chunk)
            for p, squares in _squared_gradients(learner, chunk, generator, by_hooks).items():
                totals[p] += squares
    if not examples:
        raise ValueError("the Fisher information needs at least 1 example, got 0")
    return [totals[p] / examples for p in parameters]


def _squared_gradients(learner: Learner, batch: Batch, generator: torch.Generator | None, by_hooks: bool) -> dict[Tensor, Tensor]:
    """Sum over the examples of squared gradients, for every trainable parameter that has one."""
    calls: dict[nn.Module, list[tuple[Tensor, GradientEdge | None]]] = defaultdict(list)

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # the edge, not the tensor: an activation in place would put its own result there
        calls[layer].append((inputs[0], get_gradient_edge(output) if output.requires_grad else None))

    with ExitStack() as stack:
        if by_hooks:
            owners = Counter(p for layer in learner.module.modules() for p in layer._parameters.values())
            for layer in learner.module.modules():
                if _has_rule(layer) and all(owners[p] == 1 for p in layer.parameters()):  # a tied weight goes through the loop
                    stack.callback(layer.register_forward_hook(record).remove)
        log_p = learner.log_likelihood(batch, generator)
    rows = batch.length * len(batch)
    exact = {layer: c for layer, c in calls.items() if all(x.shape[0] == rows and edge is not None for x, edge in c)}
    outputs = [edge for c in exact.values() for _, edge in c if edge is not None]
    grads = iter(torch.autograd.grad(log_p.sum(), outputs, retain_graph=True, allow_unused=True) if outputs else ())
    result: dict[Tensor, Tensor] = {}
    for layer, c in exact.items():
        used = [(x.detach(), g) for (x, _) in c if (g := next(grads)) is not None]
        if used:
            result |= _layer_squares(layer, used, len(batch))
    covered = {p for layer in exact for p in layer.parameters()}
    rest: list[Tensor] = [p for p in learner.module.parameters() if p.requires_grad and p not in covered]
    return {p: squares for p, squares in result.items() if p.requires_grad} | _loop(log_p, rest)


def _loop(log_p: Tensor, parameters: list[Tensor]) -> dict[Tensor, Tensor]:
    """One backward each example: exact for any parameter."""
    totals = {p: torch.zeros_like(p) for p in parameters}
    for value in log_p if parameters else ():
        for p, g in zip(parameters, torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True), strict=True):
            if g is not None:
                totals[p] += g * g
    return totals


def _has_rule(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine and len(layer.normalized_shape) == 1
    return isinstance(layer, nn.Linear)


def _layer_squares(layer: nn.Module, calls: list[Call], examples: int) -> dict[Tensor, Tensor]:
    """Sum over examples of squared gradients of one layer, given its inputs and its outputs' gradients."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    x, g = calls[0]
    if isinstance(layer, nn.Linear) and len(calls) == 1 and x.shape[:-1] == (examples,):
        # one row each example: (g a')^2 entrywise is g^2 (a^2)', no per-example gradient is ever formed
        squares = {weight: einsum(g**2, x**2, "b o, b i -> o i")}
        return squares | ({bias: (g**2).sum(0)} if isinstance(bias, Tensor) else {})
    weights, biases = zip(*(_per_example(layer, x, g, examples) for x, g in calls), strict=True)
    squares = {weight: (torch.stack(weights).sum(0) ** 2).sum(0).reshape(weight.shape)}
    return squares | ({bias: (torch.stack(biases).sum(0) ** 2).sum(0)} if isinstance(bias, Tensor) else {})


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
