"""Continual backpropagation: re-initializes the least useful hidden units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everloop.loop.batch import Batch
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range
from everloop.loop.strategies.parts.sample import sample_of

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    torch.tanh,
    F.gelu,
    F.silu,
    torch.sigmoid,
    lambda x: x,
)
"""Activations that may stand between two linear layers."""


@dataclass
class _Layer:
    """Hidden units between two linear layers.

    Attributes:
        reads: The layer before the units. Its rows are their incoming weights.
        feeds: The layer after the units. Its columns are their outgoing weights.
        utility: Utility of each unit, (units,).
        age: Updates since each unit was last replaced, (units,).
        due: Number of units to replace. It grows by a fraction of a unit at a time.
    """

    reads: nn.Linear
    feeds: nn.Linear
    utility: Tensor
    age: Tensor
    due: float = 0.0

    @property
    def trained(self) -> bool:
        """True if none of its weights is frozen."""
        return all(p.requires_grad for p in (*self.reads.parameters(), self.feeds.weight))


class ContinualBackprop(Strategy):
    """Preserves plasticity by re-initializing the least useful hidden units during training.

        u <- decay * u + (1 - decay) * mean |h| * sum |outgoing w|     (Dohare et al. 2024, eq. 1)
        at each update, for the share replacement_rate of the units older than `maturity` with the
        smallest u / (1 - decay^age): draw new incoming weights, set outgoing weights to 0

    The division corrects the bias of a moving average that began at 0 when the unit was new, as in
    Adam and in the authors' code. Replacing a unit changes the network's outputs by at most the
    unit's contribution. A unit must lie between two linear layers with only an activation between
    them, and nothing else may read it. Layers that are frozen or were not called are skipped. u is
    measured every `interval` updates. Adam's moments of the replaced weights are set to 0.

    Differs from the authors' code: it adds a replaced unit's mean output, times its outgoing
    weights, to the next layer's bias, and sets Adam's step count of the weights to 0. New weights
    have the bound of `nn.Linear` instead of Kaiming's.

    Memory: two numbers per unit.

    Args:
        replacement_rate: Share of the mature units replaced per update, in [0, 1]; 0 is plain
            training. rho in the paper, 1e-4 there.
        maturity: Updates for which a new unit is protected from replacement, 0 or more. The
            authors' code uses 100 on permuted MNIST.
        decay: Decay of the moving average of a unit's utility per update, 0 or more and below 1.
            The authors' code uses 0.99.
        interval: Updates between two measurements of utility, 1 or more. The authors' code uses 1;
            10 costs a tenth.
        seed: Seed for the new weights of replaced units.

    Raises:
        ValueError: If the network has no such units. In a user's own training loop this is found at
            the first batch.
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
        if decay == 1:
            raise ValueError(f"decay is {decay}, so utilities would never change; lower it")
        check_range("interval", interval, 1)
        self.replacement_rate, self.maturity = replacement_rate, maturity
        self.decay, self.interval = decay, interval
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: list[_Layer] = []
        self.steps = 0
        self.units: list[dict[str, Any]] = []  # utility, age and due of each layer, to be saved

    @property
    def active(self) -> bool:
        return self.replacement_rate > 0

    def check(self, model: Model) -> None:
        if model.world is not None:
            self._find(model, sample_of(model.world, model.device))

    def observe(self, batch: Batch, model: Model) -> None:
        if not self.layers:
            self.layers = self._find(model, batch[:2])
            restored = zip(self.layers, self.units, strict=True) if self.units else ()
            for layer, state in restored:
                layer.utility, layer.age = state["utility"].clone(), state["age"].clone()
                layer.due = state["due"]

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
        for layer in self.layers:
            if layer.feeds not in activity or not layer.trained:
                continue
            h = activity[layer.feeds]
            layer.age += self.interval
            layer.utility.mul_(decay).add_((1 - decay) * h * layer.feeds.weight.abs().sum(0))
            mature = layer.age > self.maturity
            layer.due += self.interval * self.replacement_rate * float(mature.sum())
            count = min(int(layer.due), int(mature.sum()))
            if count:
                layer.due -= count
                corrected = layer.utility / (1 - self.decay**layer.age)
                utility = corrected.masked_fill(~mature, torch.inf)
                self._replace(layer, utility.topk(count, largest=False).indices, model)

    def _replace(self, layer: _Layer, units: Tensor, model: Model) -> None:
        inputs = layer.reads.in_features
        bound = inputs**-0.5  # the bound of nn.Linear's own initial weights
        drawn = torch.rand(len(units), inputs, generator=self.generator)
        layer.reads.weight[units] = drawn.mul_(2 * bound).sub_(bound).to(layer.reads.weight)
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
        self.layers = []  # the next batch finds them again


@torch.no_grad()
def hidden_layers(model: Model, batch: Batch) -> list[_Layer]:
    """Find the hidden units between two linear layers.

    The second layer must read exactly the first one's outputs after an activation, and nothing else
    may read them.

    Args:
        model: The model to search.
        batch: Examples for the forward passes that find the pairs of layers.
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
        if first is second or out.shape != x.shape:
            return False
        return any(torch.equal(f(out), x) for f in ACTIVATIONS)

    pairs = [(first, second) for first in seen for second in seen if follows(first, second)]
    return [
        _Layer(first, second, _zeros(first), _zeros(first))
        for first, second in pairs
        if _is_only_reader(second, first, model, batch)
    ]


def _zeros(layer: nn.Linear) -> Tensor:
    return torch.zeros(layer.out_features, device=layer.weight.device)


def _is_only_reader(feeds: nn.Linear, reads: nn.Linear, model: Model, batch: Batch) -> bool:
    """True if only `feeds` reads the outputs of `reads`.

    With the outputs of `feeds` set to 0, a change of the units must not change the network's.
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
    """Return the mean |h| of the units over the batch, (units,), by the layer that reads them.

    Layers that were not called get no entry.
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
