"""Gradients of every example by itself, from one backward pass for all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from everloop.loop.batch import Batch
from everloop.loop.model import Model

Score = Callable[[Batch], Tensor]
Calls = dict[nn.Module, list[tuple[Tensor, GradientEdge | None]]]
# examples at once: bounds the memory of a convolution's patches, and the cost of the loop's
# backwards
CHUNK = 32
ROWS = 512  # where there are neither
FORWARD = {"forward", "_conv_forward"}  # what a layer of torch computes with
Normalisation = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def mean_powers(
    model: Model, batches: Iterable[Batch], score: Score, power: int, by_hooks: bool = True
) -> dict[str, Tensor]:
    """mean over examples of sum_s |d score_s(example) / d w_i|^power, for each of
    `model.weights()`.

    score: batch -> (S, B), S scalars of each example. The mean of powers, not the power of a
    minibatch's mean, so it does not depend on how the examples are batched. Linear, convolution and
    normalisation layers as torch has them cost one batched backward for all examples; parameters
    elsewhere (a GRU's, a subclass's with a forward pass of its own) cost one backward each example.
    `by_hooks=False` loops
    for all: the same numbers, slowly.
    Raises ValueError without any example.
    """
    totals: dict[Tensor, Tensor] = {}
    examples = 0
    with (
        model.evaluating()
    ):  # a batch norm in training would make every example's gradient one of all of them
        for batch in batches:
            for chunk in batch.split(ROWS if _is_plain(model.module) else CHUNK):
                examples += len(chunk)
                _add(totals, _powers(model.module, chunk, score, power, by_hooks))
    if not examples:
        raise ValueError("a mean over examples needs at least 1 of them, got 0")
    return {
        name: totals[p].div_(examples) if p in totals else torch.zeros_like(p)
        for name, p in model.weights().items()
    }


def _add(totals: dict[Tensor, Tensor], sums: dict[Tensor, Tensor]) -> None:
    """To the totals, which are as precise as the weights, and take the place of the sums that come
    first.
    """
    for p, s in sums.items():
        totals[p] = totals[p].add_(s) if p in totals else s.to(p.dtype)


@contextmanager
def recorded_layers(module: nn.Module, kinds: Callable[[nn.Module], bool]) -> Iterator[Calls]:
    """While the context lasts: each such layer's inputs, with the edges at which its own outputs'
    gradients arrive.

    Layers that share a weight with another one are left out: no layer's own gradient is that
    weight's. So are those that compute anything else than torch's layer of their kind, or make its
    weights of other ones (`weight_norm`).
    """
    calls: Calls = defaultdict(list)

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # the edge, not the tensor: an activation in place would put its own result there
        calls[layer].append(
            (inputs[0], get_gradient_edge(output) if output.requires_grad else None)
        )

    owners = Counter(p for layer in module.modules() for p in layer._parameters.values())
    layers = [
        layer
        for layer in module.modules()
        if kinds(layer) and _is_unchanged(layer) and all(owners[p] == 1 for p in layer.parameters())
    ]
    handles = [
        layer.register_forward_hook(record, prepend=True) for layer in layers
    ]  # before hooks that change the output
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _powers(
    module: nn.Module, batch: Batch, score: Score, power: int, by_hooks: bool
) -> dict[Tensor, Tensor]:
    """Sum over the examples of powers of gradients, for every trainable parameter that has one."""
    with recorded_layers(module, _has_rule if by_hooks else lambda layer: False) as calls:
        scores = score(batch)
    rows = batch.length * len(batch)
    exact = {
        layer: c
        for layer, c in calls.items()
        if all(x.shape[0] == rows and edge is not None for x, edge in c)
    }
    edges = [edge for c in exact.values() for _, edge in c if edge is not None]
    factors = {
        layer: [_factor(layer, x.detach(), len(batch)) for x, _ in c] for layer, c in exact.items()
    }
    covered = {p for layer in exact for p in layer.parameters()}
    rest: list[Tensor] = [p for p in module.parameters() if p.requires_grad and p not in covered]
    result: dict[Tensor, Tensor] = {}
    by_rows: dict[nn.Module, Tensor] = {}  # sum over scores of |g|^power, (b, features)
    for values in scores:
        grads = iter(
            torch.autograd.grad(values.sum(), edges, retain_graph=True, allow_unused=True)
            if edges
            else ()
        )
        for layer, inputs in factors.items():
            used = [
                (a.to(g.dtype), _outputs(layer, g, len(batch)))
                for a in inputs
                if (g := next(grads)) is not None
            ]
            if used and _has_one_row(layer, inputs):
                powers = used[0][1][:, 0].abs() ** power
                by_rows[layer] = by_rows[layer].add_(powers) if layer in by_rows else powers
            elif used:
                _add(result, _layer_powers(layer, used, power))
        _add(result, _loop(values, rest, power))
    for layer, powers in by_rows.items():
        _add(result, _row_powers(layer, factors[layer][0], powers, power))
    return {p: s for p, s in result.items() if p.requires_grad}


def _loop(values: Tensor, parameters: list[Tensor], power: int) -> dict[Tensor, Tensor]:
    """One backward each example: exact for any parameter."""
    totals = {p: torch.zeros_like(p) for p in parameters}
    for value in values if parameters else ():
        for p, g in zip(
            parameters,
            torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            if g is not None:
                totals[p] += g.abs() ** power
    return totals


def _has_rule(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine and len(layer.normalized_shape) == 1
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return (
            layer.affine and layer.track_running_stats
        )  # as it is judged it is the same map for every example
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.GroupNorm) and layer.affine)


def _is_unchanged(layer: nn.Module) -> bool:
    """Whether the layer does what torch's own of its kind does, with a weight and a bias that are
    parameters themselves.
    """
    kind = next(kind for kind in (nn.Linear, nn.Conv2d, *Normalisation) if isinstance(layer, kind))
    own = all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in FORWARD)
    return (
        own
        and not FORWARD & vars(layer).keys()
        and {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether every parameter is a linear layer's."""
    return all(
        isinstance(layer, nn.Linear) and _is_unchanged(layer)
        for layer in module.modules()
        if layer._parameters
    )


def _factor(layer: nn.Module, x: Tensor, examples: int) -> Tensor:
    """What the gradient of a layer's outputs is multiplied with for its weight's: (b, steps and
    positions, features).
    """
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        return _positions(
            rearrange(
                F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride),
                "r i p -> r p i",
            ),
            examples,
        )
    if isinstance(layer, nn.LayerNorm):
        return _positions(F.layer_norm(x, layer.normalized_shape, eps=layer.eps), examples)
    if isinstance(layer, nn.GroupNorm):
        return _outputs(layer, F.group_norm(x, layer.num_groups, eps=layer.eps), examples)
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _outputs(
            layer, F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps), examples
        )
    return _positions(x, examples)


def _outputs(layer: nn.Module, g: Tensor, examples: int) -> Tensor:
    """(b, steps and positions, features), of outputs that may have their features in the second
    place.
    """
    first = not isinstance(layer, (nn.Linear, nn.LayerNorm)) and g.ndim > 2
    return _positions(g.flatten(2).transpose(1, 2) if first else g, examples)


def _has_one_row(layer: nn.Module, inputs: list[Tensor]) -> bool:
    """Whether each example goes through the layer once, as one row."""
    return not isinstance(layer, Normalisation) and len(inputs) == 1 and inputs[0].shape[1] == 1


def _row_powers(layer: nn.Module, a: Tensor, powers: Tensor, power: int) -> dict[Tensor, Tensor]:
    """Of a layer through which each example goes once, as one row: |g a'|^2 entrywise is g^2
    (a^2)'.

    No example's own gradient is ever formed, and scores share one product: sum_s (g_s^2)' a^2 =
    (sum_s g_s^2)' a^2.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    sums = {weight: (powers.T @ (a[:, 0].to(powers.dtype).abs() ** power)).reshape(weight.shape)}
    return sums | ({bias: powers.sum(0)} if isinstance(bias, Tensor) else {})


def _layer_powers(
    layer: nn.Module, calls: list[tuple[Tensor, Tensor]], power: int
) -> dict[Tensor, Tensor]:
    """Sum over examples of powers of gradients of one layer, given its calls' factors and its
    outputs' gradients.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    a, g = calls[0]
    if isinstance(layer, Normalisation):
        sums = {weight: (sum((a * g).sum(1) for a, g in calls).abs() ** power).sum(0)}  # type: ignore[union-attr]
    else:
        total = weight.new_zeros(weight.shape[0], weight[0].numel(), dtype=g.dtype)
        one = torch.empty_like(total)
        for i in range(len(a)):  # one at a time: all at once would not fit into any cache
            torch.mm(g[i].T, a[i], out=one)
            for again, h in calls[1:]:
                one.addmm_(h[i].T, again[i])
            total.addcmul_(one, one) if power == 2 else total.add_(one.abs_() ** power)
        sums = {weight: total.reshape(weight.shape)}
    if isinstance(bias, Tensor):
        sums[bias] = (sum(g.sum(1) for _, g in calls).abs() ** power).sum(0)  # type: ignore[union-attr]
    return sums


def _positions(x: Tensor, examples: int) -> Tensor:
    """Rows (t b), with any positions between, -> (b, steps and positions, features)."""
    rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    return rearrange(rows, "(t b) p i -> b (t p) i", b=examples)
