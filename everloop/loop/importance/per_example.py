"""Per-example gradients, from one backward pass for all examples."""

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
"""Maps a batch of B examples to S scalars for each of them, (S, B)."""

Calls = dict[nn.Module, list[tuple[Tensor, GradientEdge | None]]]
"""For each layer, the input of every call and the edge where its output's gradient arrives."""

CHUNK = 32
"""Examples processed at once.

Bounds the memory of a convolution's patches, and the cost of one backward pass an example.
"""

PLAIN_CHUNK = 512
"""Examples processed at once in networks of linear layers, which have neither cost."""

FORWARD = {"forward", "_conv_forward"}
"""The methods that compute the output of torch's layers."""

Normalisation = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def mean_powers(
    model: Model, batches: Iterable[Batch], score: Score, power: int, by_hooks: bool = True
) -> dict[str, Tensor]:
    """Return the mean of powers of per-example gradients, for each of `model.weights()`.

        mean over examples of sum_s |d score_s(example) / d w_i|^power

    This is the mean of powers, not the power of a minibatch's mean gradient, so it does not depend
    on how the examples are batched. torch's linear, convolution and normalisation layers cost one
    batched backward pass for all examples. All other parameters (those of a GRU, or of a subclass
    with its own forward pass) cost one backward pass an example.

    Args:
        model: The model with these weights.
        batches: Examples, at least one in all.
        score: S scalars for each example of a batch, (S, B).
        power: Exponent, 1 or more.
        by_hooks: If False, every parameter costs one backward pass an example. The numbers are the
            same.

    Returns:
        The mean by the name of the weight, in its shape and dtype.

    Raises:
        ValueError: If there are no examples.
    """
    totals: dict[Tensor, Tensor] = {}
    examples = 0
    # A batch norm in training mode would mix the examples' gradients.
    with model.evaluating(gradients=True):
        for batch in batches:
            for chunk in batch.split(PLAIN_CHUNK if _is_plain(model.module) else CHUNK):
                examples += len(chunk)
                _add(totals, _powers(model.module, chunk, score, power, by_hooks))
    if not examples:
        raise ValueError("there are no examples to average over; give at least one")
    return {
        name: totals[p].div_(examples) if p in totals else torch.zeros_like(p)
        for name, p in model.weights().items()
    }


def _add(totals: dict[Tensor, Tensor], sums: dict[Tensor, Tensor]) -> None:
    """Add to the totals in place. Totals have the precision of the weights."""
    for p, s in sums.items():
        totals[p] = totals[p].add_(s) if p in totals else s.to(p.dtype)


@contextmanager
def recorded_layers(module: nn.Module, kinds: Callable[[nn.Module], bool]) -> Iterator[Calls]:
    """Record the inputs of layers, and the edges where the gradients of their outputs arrive.

    Layers that share a weight are skipped: the weight's gradient is a sum over several layers. So
    are layers that compute anything other than torch's layer of their kind, or derive their weight
    from other parameters (`weight_norm`).

    Args:
        module: The network.
        kinds: True for the layers to record: linear, convolution or normalisation layers.

    Yields:
        The calls of each layer, filled while the context lasts.
    """
    calls: Calls = defaultdict(list)

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The edge, because an in-place activation would overwrite the tensor.
        edge = get_gradient_edge(output) if output.requires_grad else None
        calls[layer].append((inputs[0], edge))

    owners = Counter(p for layer in module.modules() for p in layer._parameters.values())
    layers = [
        layer
        for layer in module.modules()
        if kinds(layer) and _is_unchanged(layer) and all(owners[p] == 1 for p in layer.parameters())
    ]
    # `prepend`, so that no other hook has changed the output yet
    handles = [layer.register_forward_hook(record, prepend=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _powers(
    module: nn.Module, batch: Batch, score: Score, power: int, by_hooks: bool
) -> dict[Tensor, Tensor]:
    """Return the sum over examples of powers of gradients, for each parameter that has one."""
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
    by_rows: dict[nn.Module, Tensor] = {}  # layer -> sum over scores of |g|^power, (b, features)
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
    """Do the same with one backward pass an example, which is exact for any parameter."""
    totals = {p: torch.zeros_like(p) for p in parameters}
    for value in values if parameters else ():
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        for p, g in zip(parameters, grads, strict=True):
            if g is not None:
                totals[p] += g.abs() ** power
    return totals


def _has_rule(layer: nn.Module) -> bool:
    """Return True if per-example gradients follow from the layer's inputs and outputs."""
    if isinstance(layer, nn.Conv2d):
        return (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine and len(layer.normalized_shape) == 1
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        # With running statistics it is the same map for every example in evaluation mode.
        return layer.affine and layer.track_running_stats
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.GroupNorm) and layer.affine)


def _is_unchanged(layer: nn.Module) -> bool:
    """Return True if the layer computes what torch's does, from a weight and a bias of its own."""
    kind = next(kind for kind in (nn.Linear, nn.Conv2d, *Normalisation) if isinstance(layer, kind))
    own = all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in FORWARD)
    return (
        own
        and not FORWARD & vars(layer).keys()
        and {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}
    )


def _is_plain(module: nn.Module) -> bool:
    """Return True if every parameter belongs to a linear layer."""
    return all(
        isinstance(layer, nn.Linear) and _is_unchanged(layer)
        for layer in module.modules()
        if layer._parameters
    )


def _factor(layer: nn.Module, x: Tensor, examples: int) -> Tensor:
    """Return the factor that turns the gradient of a layer's outputs into that of its weight.

    Shape (b, steps and positions, features).
    """
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return _positions(rearrange(patches, "r i p -> r p i"), examples)
    if isinstance(layer, nn.LayerNorm):
        return _positions(F.layer_norm(x, layer.normalized_shape, eps=layer.eps), examples)
    if isinstance(layer, nn.GroupNorm):
        return _outputs(layer, F.group_norm(x, layer.num_groups, eps=layer.eps), examples)
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        normalised = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
        return _outputs(layer, normalised, examples)
    return _positions(x, examples)


def _outputs(layer: nn.Module, g: Tensor, examples: int) -> Tensor:
    """Return a layer's outputs as (b, steps and positions, features).

    The outputs of convolutions and of most norms have their features in the second dimension.
    """
    first = not isinstance(layer, (nn.Linear, nn.LayerNorm)) and g.ndim > 2
    return _positions(g.flatten(2).transpose(1, 2) if first else g, examples)


def _has_one_row(layer: nn.Module, inputs: list[Tensor]) -> bool:
    """Return True if each example passes through the layer once, as one row."""
    return not isinstance(layer, Normalisation) and len(inputs) == 1 and inputs[0].shape[1] == 1


def _row_powers(layer: nn.Module, a: Tensor, powers: Tensor, power: int) -> dict[Tensor, Tensor]:
    """Return the sums of powers for a layer through which each example passes once, as one row.

    An example's gradient is an outer product, whose entrywise power is an outer product too, so
    the gradient itself is never formed. All scores share one matrix product:

        |g a'|^2 = g^2 (a^2)',   sum_s (g_s^2)' a^2 = (sum_s g_s^2)' a^2
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    sums = {weight: (powers.T @ (a[:, 0].to(powers.dtype).abs() ** power)).reshape(weight.shape)}
    return sums | ({bias: powers.sum(0)} if isinstance(bias, Tensor) else {})


def _layer_powers(
    layer: nn.Module, calls: list[tuple[Tensor, Tensor]], power: int
) -> dict[Tensor, Tensor]:
    """Return the sums of powers for one layer, from (factor, gradient of the outputs) by call."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    a, g = calls[0]
    if isinstance(layer, Normalisation):
        sums = {weight: (sum((a * g).sum(1) for a, g in calls).abs() ** power).sum(0)}  # type: ignore[union-attr]
    else:
        total = weight.new_zeros(weight.shape[0], weight[0].numel(), dtype=g.dtype)
        one = torch.empty_like(total)
        for i in range(len(a)):  # one example at a time, because all would not fit into the cache
            torch.mm(g[i].T, a[i], out=one)
            for again, h in calls[1:]:
                one.addmm_(h[i].T, again[i])
            total.addcmul_(one, one) if power == 2 else total.add_(one.abs_() ** power)
        sums = {weight: total.reshape(weight.shape)}
    if isinstance(bias, Tensor):
        sums[bias] = (sum(g.sum(1) for _, g in calls).abs() ** power).sum(0)  # type: ignore[union-attr]
    return sums


def _positions(x: Tensor, examples: int) -> Tensor:
    """Rearrange (t b, ..., features) to (b, steps and positions, features)."""
    rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    return rearrange(rows, "(t b) p i -> b (t p) i", b=examples)
