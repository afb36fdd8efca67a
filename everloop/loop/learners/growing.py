"""What strategies stored for a head, after the user has replaced it by a larger one.

The rows of the old head come first. What a strategy stored for them stays; a new row gets what a
new weight has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everloop.loop.model import Model
from everloop.loop.state import Stateful, declared
from everloop.loop.strategies.base import Strategy
from everloop.loop.strategies.continual_backprop import ContinualBackprop
from everloop.loop.strategies.ewc_kfac import KroneckerEWC
from everloop.loop.strategies.l2_init import L2Init
from everloop.loop.strategies.la_maml import LaMAML
from everloop.loop.strategies.parts.rehearsal import Rehearsal

PRESENT = {"anchor", "start", "initial"}
"""Attributes that hold values of weights; a new row gets its present value."""

BY_CLASS = {"seen", "old"}
"""Attributes that hold a flag for each class; a new class gets False."""


def grow_weights(strategies: Sequence[Strategy], model: Model) -> None:
    """Enlarge everything that is stored for a weight which is larger now.

    Raises:
        ValueError: If a weight has become smaller.
    """
    for strategy in strategies:
        for name, values in _mappings(strategy):
            for key, p in model.module.named_parameters():
                value = values.get(key)
                if isinstance(value, Tensor) and value.shape != p.shape:
                    new = p.detach().clone() if name in PRESENT else torch.zeros_like(p)
                    if name == "rates" and isinstance(strategy, LaMAML):
                        new.fill_(strategy.alpha)
                    if name == "precision" and isinstance(strategy, L2Init):
                        new.fill_(1.0)  # its anchor is the value that the row starts with
                    values[key] = _enlarged(value, new, f"{strategy.name}: the weight {key}")
        if isinstance(strategy, KroneckerEWC):
            _grow_factors(strategy, model)
        if isinstance(strategy, ContinualBackprop) and strategy.layers:
            strategy.load_state_dict(strategy.state_dict(), model)  # finds the new layers


def grow_outputs(strategies: Sequence[Strategy], size: int) -> None:
    """Enlarge everything that is stored for each of the network's outputs.

    Args:
        strategies: The strategies.
        size: P, the number of outputs now.

    Raises:
        ValueError: If there are fewer outputs than before.
    """
    for strategy in strategies:
        for name in BY_CLASS & set(declared(type(strategy))):
            flags = getattr(strategy, name)
            if flags is not None and len(flags) != size:
                new = torch.zeros(size, dtype=torch.bool, device=flags.device)
                setattr(strategy, name, _enlarged(flags, new, f"{strategy.name}: the output"))
        stored = strategy.memory.items if isinstance(strategy, Rehearsal) else {}
        output = stored.get("output")
        if output is not None and output.shape[-1] != size:
            wider = np.full((*output.shape[:-1], size), np.nan, output.dtype)
            wider[..., : output.shape[-1]] = output
            stored["output"] = wider


def _mappings(strategy: Strategy) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every saved mapping of the strategy and of its parts, with its name."""
    parts = [getattr(strategy, name) for name in declared(type(strategy))]
    for owner in (strategy, *(part for part in parts if isinstance(part, Stateful))):
        for name in declared(type(owner)):
            if isinstance(values := getattr(owner, name), dict):
                yield name, values


def _grow_factors(strategy: KroneckerEWC, model: Model) -> None:
    for name, tasks in strategy.layers.items():
        layer: Any = model.module.get_submodule(name)
        weight = layer.weight.detach()
        if layer.bias is not None:
            weight = torch.cat([weight, layer.bias.detach()[:, None]], 1)
        if weight.shape == tasks[0][2].shape:
            continue
        rows = weight.new_zeros(len(weight), len(weight))
        what = f"{strategy.name}: the layer {name}"
        strategy.layers[name] = [
            (A, _enlarged(G, rows.clone(), what), _enlarged(anchor, weight.clone(), what))
            for A, G, anchor in tasks
        ]


def _enlarged(value: Tensor, new: Tensor, what: str) -> Tensor:
    """Return `new` with `value` in its first rows (and columns)."""
    shapes = tuple(value.shape), tuple(new.shape)
    if value.ndim != new.ndim or any(a > b for a, b in zip(*shapes, strict=True)):
        raise ValueError(
            f"{what} had the shape {shapes[0]} and has {shapes[1]} now; it may only grow, with the "
            "old rows first"
        )
    new[tuple(slice(0, n) for n in value.shape)] = value
    return new


def replaced(known: Mapping[str, Tensor], model: Model) -> list[str]:
    """Return the names of weights that the optimizer trains, but the module no longer holds."""
    now = dict(model.module.named_parameters())
    trained = {id(p) for group in model.optimizer.param_groups for p in group["params"]}
    return [name for name, p in known.items() if now.get(name) is not p and id(p) in trained]
