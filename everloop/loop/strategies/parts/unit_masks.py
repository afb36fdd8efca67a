"""Masks over the units of hidden layers, and how much inputs and weights are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everloop.loop.batch import Batch
from everloop.loop.model import Model

Layer = nn.Linear | nn.Conv2d
MASK = "unit_mask"
"""Name of the buffer that holds a layer's mask."""


def hidden_layers(model: Model) -> dict[str, Layer]:
    """Return the hidden layers, by name, whose outputs (features or channels) are units.

    These are the trained linear and 2-D convolutional layers other than the last layer and the
    value head. Layers that share a weight with another module are left out.
    """
    last, parts = model.last_layer(), dict(model.module.named_modules())
    owners = Counter(p for part in parts.values() for p in part._parameters.values())
    return {
        name: layer
        for name, layer in parts.items()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        and layer is not last
        and not name.startswith("value")
        and layer.weight.requires_grad
        and all(owners[p] == 1 for p in layer.parameters())
    }


def unit_masks(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Return each layer's mask, by the layer's name. The layer's outputs are multiplied by it.

    A mask (units,) is a leaf tensor, whose gradient is computed together with the weights'. A layer
    without a mask gets a new one of ones. Masks are buffers of the layer, so a copy of the network
    has its own masks.
    """
    for layer in layers.values():
        if MASK not in layer._buffers:
            layer.register_buffer(
                MASK, layer.weight.new_ones(len(layer.weight)).requires_grad_(), persistent=False
            )
            layer.register_forward_hook(_mask)
    return {name: layer.get_buffer(MASK) for name, layer in layers.items()}


def _mask(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    a = layer.get_buffer(MASK).to(output.dtype)
    return output * (a if isinstance(layer, nn.Linear) else a[:, None, None])


@torch.no_grad()
def inputs_used(
    model: Model, examples: Batch, layers: Mapping[str, Layer], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return which inputs of each layer are used, by the layer's name, (inputs,).

    An input is 0 if it is zero only because of the masks, and 1 otherwise. To find out, two forward
    passes replace the outputs of all units by noise: the first with the masks, the second without.

    Args:
        model: The model, whose layers have masks.
        examples: Examples for the forward passes.
        layers: The hidden layers by name, as `hidden_layers` returns them. Layers that are
            not called get no entry.
        generator: Generator of the noise, on the model's device.
    """
    names = {layer: name for name, layer in layers.items()}
    alive: list[dict[str, Tensor]] = []

    def look(layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].movedim(-1 if isinstance(layer, nn.Linear) else -3, 0).flatten(1)
        alive[-1][names[layer]] = (x != 0).any(1) | alive[-1].get(names[layer], False)

    def disturb(layer: Layer, inputs: Any, output: Tensor) -> Tensor:
        device, dtype = output.device, output.dtype
        noise = torch.randn(output.shape, generator=generator, device=device, dtype=dtype)
        return noise if len(alive) == 2 else _mask(layer, inputs, noise)

    handles = [layer.register_forward_pre_hook(look) for layer in names]
    handles += [layer.register_forward_hook(disturb) for layer in names]
    with model.evaluating():
        for _ in range(2):
            alive.append({})
            model.outputs(examples)
    for handle in handles:
        handle.remove()
    return {
        name: (on | ~alive[1][name]).to(layers[name].weight.dtype) for name, on in alive[0].items()
    }


CHUNK = 256
"""Examples in one pass that finds used inputs and weights."""


def weights_reached(model: Model, batches: Sequence[Batch]) -> list[nn.Parameter]:
    """Return the trained weights on which the outputs for some of the examples depend."""
    left, reached = list(model.weights().values()), list[nn.Parameter]()
    with torch.enable_grad(), model.evaluating(gradients=True):
        for chunk in (chunk for batch in batches for chunk in batch.split(CHUNK)):
            if not left:
                break
            outputs = model.outputs(chunk).sum()
            found = torch.autograd.grad(outputs, left, allow_unused=True)
            reached += [p for p, g in zip(left, found, strict=True) if g is not None]
            left = [p for p, g in zip(left, found, strict=True) if g is None]
    return reached


def weights_used(
    model: Model,
    batches: Sequence[Batch],
    layers: Mapping[str, Layer],
    units: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return how much each weight below the last layer is used, by the weight's name.

    A weight is used as much as the less used of its input and its unit, and a bias as its unit.
    All other weights on which the outputs depend, such as those of norms, are used fully (1).

    Args:
        model: The model.
        batches: Examples that show on which weights the outputs depend.
        layers: The hidden layers by name, as `hidden_layers` returns them.
        units: Use of each layer's units in [0, 1], (units,), by the layer's name.
        inputs: Use of each layer's inputs in [0, 1], (inputs,), by the layer's name. The weights of
            layers without an entry are used fully.
    """
    last = set(model.last_layer().parameters())
    reached = weights_reached(model, batches)
    used: dict[Tensor, Tensor] = {p: torch.ones_like(p) for p in reached if p not in last}
    for name, layer in layers.items():
        if name not in inputs or layer.weight not in used:
            continue
        i, groups = units[name], getattr(layer, "groups", 1)
        # A channel of a grouped convolution sees only the inputs of its group.
        j = inputs[name].view(groups, -1).repeat_interleave(len(i) // groups, 0)
        kernel_axes = [1] * (layer.weight.ndim - 2)
        used[layer.weight] *= torch.minimum(i[:, None], j).view(*j.shape, *kernel_axes)
        if layer.bias is not None:
            used[layer.bias] *= i
    return {name: used[p] for name, p in model.weights().items() if p in used}
