"""Masks over the units of hidden layers, and what they make of weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everloop.loop.batch import Batch
from everloop.loop.model import Model

Layer = nn.Linear | nn.Conv2d
MASK = "unit_mask"


def hidden_layers(model: Model) -> dict[str, Layer]:
    """The layers whose outputs (features, channels) are units: trained, below the last one, with
    weights of their own.
    """
    last, parts = model.last_layer(), dict(model.module.named_modules())
    owners = Counter(p for part in parts.values() for p in part._parameters.values())
    return {
        name: layer
        for name, layer in parts.items()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        and layer is not last
        and not name.startswith("value")
        if layer.weight.requires_grad and all(owners[p] == 1 for p in layer.parameters())
    }


def unit_masks(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Of each layer the mask by which its outputs are multiplied: a leaf, which gets its gradient
    when the weights do.

    A layer that has none yet is given one of ones. Masks belong to the layer, so that a copy of the
    network has its own.
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
    """Of each layer that is called: 0 for the inputs that are 0 only because masks are, 1 for the
    others.

    Noise takes the place of all units' outputs, first with the masks and then without.
    """
    names = {layer: name for name, layer in layers.items()}
    alive: list[dict[str, Tensor]] = []

    def look(layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].movedim(-1 if isinstance(layer, nn.Linear) else -3, 0).flatten(1)
        alive[-1][names[layer]] = (x != 0).any(1) | alive[-1].get(names[layer], False)

    def disturb(layer: Layer, inputs: Any, output: Tensor) -> Tensor:
        noise = torch.randn(
            output.shape, generator=generator, device=output.device, dtype=output.dtype
        )
        return noise if len(alive) == 2 else _mask(layer, inputs, noise)

    handles = [layer.register_forward_pre_hook(look) for layer in names] + [
        layer.register_forward_hook(disturb) for layer in names
    ]
    with model.evaluating():
        for _ in range(2):
            alive.append({})
            model.outputs(examples)
    for handle in handles:
        handle.remove()
    return {
        name: (on | ~alive[1][name]).to(layers[name].weight.dtype) for name, on in alive[0].items()
    }


def weights_used(
    model: Model,
    examples: Batch,
    layers: Mapping[str, Layer],
    units: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """By name, of each weight on which the outputs depend, but for the last layer's: min(unit,
    input), of a bias the unit.

    1 where it leads to no unit: of a norm, of a layer that is not among `inputs`.
    """
    weights, last = model.weights(), set(model.last_layer().parameters())
    with torch.enable_grad(), model.evaluating():
        found = torch.autograd.grad(
            model.outputs(examples).sum(), list(weights.values()), allow_unused=True
        )
    used: dict[Tensor, Tensor] = {
        p: torch.ones_like(p)
        for p, g in zip(weights.values(), found, strict=True)
        if g is not None and p not in last
    }
    for name, layer in layers.items():
        if name not in inputs or layer.weight not in used:
            continue
        i, groups = units[name], getattr(layer, "groups", 1)
        j = (
            inputs[name].view(groups, -1).repeat_interleave(len(i) // groups, 0)
        )  # a channel of a grouped convolution sees its group's
        used[layer.weight] *= torch.minimum(i[:, None], j).view(
            *j.shape, *[1] * (layer.weight.ndim - 2)
        )
        if layer.bias is not None:
            used[layer.bias] *= i
    return {name: used[p] for name, p in weights.items() if p in used}
