"""Continual backpropagation: re-initializes the least useful hidden units."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.contract import World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    torch.tanh,
    F.gelu,
    F.silu,
    torch.sigmoid,
    lambda x: x,
)


@dataclass
class _Layer:
    """Hidden units between two linear layers."""

    reads: nn.Linear  # its rows are the units' incoming weights
    feeds: nn.Linear  # its columns are their outgoing ones
    utility: Tensor
    age: Tensor
    due: float = 0.0  # units to be replaced, a fraction at a time

    @property
    def learns(self) -> bool:
        """Whether nothing of it is frozen."""
        return all(p.requires_grad for p in (*self.reads.parameters(), self.feeds.weight))


class ContinualBackprop(Strategy):
    """Preserves plasticity: keeps re-initializing the least useful hidden units during training.

        u <- decay * u + (1 - decay) * mean |h| * sum |outgoing w|     (Dohare et al. 2024, eq. 1)
        at each step, a share replacement_rate of the units older than `maturity`, those with the
        smallest utility u: draw new incoming weights, set outgoing weights to 0

    A replaced unit changes the network's outputs by no more than the old unit contributed. Units
    are those between two linear layers with only an activation between them, and read by nothing
    else. A layer that is frozen, or was not called, is skipped. u is measured every `interval`
    steps. Adam's moments of the replaced weights are set to 0.

    Memory: two numbers a unit.

    Args:
        replacement_rate: Share of the mature units replaced per update, in [0, 1]; 0 is plain
            training. rho in the paper, 1e-4 there.
        maturity: Updates for which a new unit is protected from replacement, 0 or more.
        decay: Decay of the moving average of a unit's utility per update, in [0, 1].
        interval: Updates between two measurements of utility, 1 or more.
        seed: Seed for the new weights of replaced units.

    Raises:
        ValueError: For a network without such units; in a foreign loop, at the first batch.
    """

    name = "continual_backprop"
    traits: ClassVar[Traits] = Traits(boundaries=False, plasticity=True)
    state = ("units", "steps", "generator")

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        maturity: int = 100,
        decay: float = 0.99,
        interval: int = 10,
        seed: int = 0,
    ) -> None:
        check_range("replacement_rate", replacement_rate, 0, 1)
        check_range("maturity", maturity, 0)
        check_range("decay", decay, 0, 1)
        check_range("interval", interval, 1)
        self.replacement_rate, self.maturity, self.decay, self.interval = (
            replacement_rate,
            maturity,
            decay,
            interval,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: list[_Layer] = []
        self.steps = 0
        self.units: list[dict[str, Any]] = []  # what a loaded state says of the layers

    @property
    def active(self) -> bool:
        return self.replacement_rate > 0

    def check(self, model: Model) -> None:
        if model.world is not None:
            self._find(model, _any_two(model.world, model.device))

    def observe(self, batch: Batch, model: Model) -> None:
        if not self.layers:
            self.layers = self._find(model, batch[:2])
            for layer, state in zip(self.layers, self.units, strict=False):
                layer.utility, layer.age, layer.due = (
                    state["utility"].clone(),
                    state["age"].clone(),
                    state["due"],
                )

    def _find(self, model: Model, batch: Batch) -> list[_Layer]:
        layers = hidden_layers(model, batch)
        if not layers:
            raise ValueError(
                "continual_backprop finds no hidden units; use a network with two linear layers in "
                "a row (architecture mlp)"
            )
        return layers

    @torch.no_grad()
    def after_step(self, batch: Batch, model: Model) -> None:
        if not self.layers:
            return
        self.steps += 1
        if self.steps % self.interval:
            return
        activity = _activity(model, batch, self.layers)
        decay = self.decay**self.interval
        for layer in (layer for layer in self.layers if layer.feeds in activity and layer.learns):
            h = activity[layer.feeds]
            layer.age += self.interval
            layer.utility.mul_(decay).add_((1 - decay) * h * layer.feeds.weight.abs().sum(0))
            mature = layer.age > self.maturity
            layer.due += self.interval * self.replacement_rate * float(mature.sum())
            count = min(int(layer.due), int(mature.sum()))
            if count:
                layer.due -= count
                least = (
                    layer.utility.masked_fill(~mature, torch.inf).topk(count, largest=False).indices
                )
                self._replace(layer, least, model)

    def _replace(self, layer: _Layer, units: Tensor, model: Model) -> None:
        bound = layer.reads.in_features**-0.5  # as nn.Linear draws its own
        drawn = (
            torch.rand(len(units), layer.reads.in_features, generator=self.generator)
            .mul_(2 * bound)
            .sub_(bound)
        )
        layer.reads.weight[units] = drawn.to(layer.reads.weight)
        layer.feeds.weight[:, units] = 0.0
        parts: list[tuple[Tensor, Any]] = [
            (layer.reads.weight, units),
            (layer.feeds.weight, (slice(None), units)),
        ]
        if layer.reads.bias is not None:
            layer.reads.bias[units] = 0.0
            parts.append((layer.reads.bias, units))
        for p, where in parts:
            for moment in model.optimizer.state.get(p, {}).values():
                if isinstance(moment, Tensor) and moment.shape == p.shape:
                    moment[where] = 0.0
        layer.utility[units], layer.age[units] = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        if self.layers:
            self.units = [
                {"utility": layer.utility, "age": layer.age, "due": layer.due}
                for layer in self.layers
            ]
        return super().state_dict()

    def _restored(self, model: Model) -> None:
        self.layers = []  # found again at the next batch


def _any_two(world: World, device: torch.device) -> Batch:
    """Two observations such as `world` might show."""
    space = copy.deepcopy(world.single_observation_space)
    space.seed(0)
    shown = [space.sample() for _ in range(2)]
    obs = {
        name: to_tensor(np.stack([one[name] for one in shown])[None], device) for name in shown[0]
    }
    return Batch(obs, torch.ones(1, 2, dtype=torch.bool, device=device))


@torch.no_grad()
def hidden_layers(model: Model, batch: Batch) -> list[_Layer]:
    """Pairs of linear layers of which the second sees just the first one's outputs after an
    activation, and nothing else sees them.
    """
    seen: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
    linear = [layer for layer in model.module.modules() if isinstance(layer, nn.Linear)]
    handles = [
        layer.register_forward_hook(
            lambda layer, x, y: seen.__setitem__(layer, (x[0].clone(), y.clone()))
        )
        for layer in linear
    ]
    with model.evaluating():
        model.outputs(batch)
    for handle in handles:
        handle.remove()

    def follows(first: nn.Linear, second: nn.Linear) -> bool:
        out, x = seen[first][1], seen[second][0]
        return (
            first is not second
            and out.shape == x.shape
            and any(torch.equal(f(out), x) for f in ACTIVATIONS)
        )

    pairs = [(first, second) for first in seen for second in seen if follows(first, second)]
    return [
        _Layer(
            a,
            b,
            torch.zeros(a.out_features, device=a.weight.device),
            torch.zeros(a.out_features, device=a.weight.device),
        )
        for a, b in pairs
        if _alone(a, b, model, batch)
    ]


def _alone(reads: nn.Linear, feeds: nn.Linear, model: Model, batch: Batch) -> bool:
    """Whether, behind a second layer that gives nothing, the network puts out the same whatever the
    units do.
    """
    handles = [feeds.register_forward_hook(lambda layer, x, y: torch.zeros_like(y))]
    with model.evaluating():
        before = model.forward(batch)
        handles.append(reads.register_forward_hook(lambda layer, x, y: 1 - 2 * y))
        after = model.forward(batch)
    for handle in handles:
        handle.remove()
    both = [
        (before.prediction, after.prediction),
        (before.value, after.value),
        (before.heads, after.heads),
    ]
    return all(x is None or y is None or torch.equal(x, y) for x, y in both)


def _activity(model: Model, batch: Batch, layers: list[_Layer]) -> dict[nn.Linear, Tensor]:
    """Mean |h| over the batch of the units of every layer that was called, by the layer that they
    feed.
    """
    seen: dict[nn.Linear, Tensor] = {}
    feeds = [layer.feeds for layer in layers]
    handles = [
        f.register_forward_pre_hook(
            lambda f, x: seen.__setitem__(f, x[0].abs().flatten(0, -2).float().mean(0))
        )
        for f in feeds
    ]
    with model.evaluating():
        model.outputs(batch)
    for handle in handles:
        handle.remove()
    return seen
