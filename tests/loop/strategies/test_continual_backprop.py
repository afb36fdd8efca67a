"""Continual backprop: how it finds, ranks and replaces hidden units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architecture_helpers import examples, learn_task, task_aware_learner, view_outputs
from loop_helpers import (
    same,
    vector_batch,
    weights,
)
from plasticity_helpers import plain_learner, two_hidden_layers
from torch import Tensor, nn

from everloop.agents import MLP, ProgressiveMLP
from everloop.loop import (
    ContinualBackprop,
    LoRA,
    Progressive,
    Strategy,
)
from everloop.loop.strategies.continual_backprop import hidden_layers


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity])
def test_hidden_units_are_found_with_usual_activations(act: type[nn.Module]) -> None:
    layers = two_hidden_layers(act=act)
    found = hidden_layers(plain_learner(layers), vector_batch(2, 4, 3))
    assert [(layer.reads, layer.feeds) for layer in found] == [
        (layers[0], layers[2]),
        (layers[2], layers[4]),
    ]


def test_units_with_other_readers_or_normalisation_are_left_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.b = nn.Linear(6, 3)
            self.c = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.b(h) + self.c(h)  # type: ignore[no-any-return]

    class Skipped(Forked):
        """A skip connection around the second layer."""

        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.c(h + torch.relu(self.b(h)))  # type: ignore[no-any-return]

    for layers in (
        Forked(),
        Skipped(),
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        nn.Linear(4, 3),
    ):
        learner = plain_learner(layers)
        assert hidden_layers(learner, vector_batch(2, 4, 3)) == []
        with pytest.raises(
            ValueError, match="continual_backprop finds no hidden units; use a network"
        ):
            ContinualBackprop(0.1).observe(vector_batch(2, 4, 3), learner)


def test_finding_units_changes_nothing() -> None:
    layers = two_hidden_layers()
    learner, before = plain_learner(layers), weights(layers)
    hidden_layers(learner, vector_batch(2, 4, 3))
    assert same(weights(learner.module), before)
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("freezer", "network"), [(LoRA, MLP), (Progressive, ProgressiveMLP)])
def test_units_frozen_by_another_strategy_are_not_replaced(
    freezer: Any, network: Any, last: bool
) -> None:
    learner = task_aware_learner(network((8, 8, 1), (16, 16)))
    replace, freezing = ContinualBackprop(0.05, maturity=2, interval=1), freezer()
    strategies: list[Strategy] = [freezing, replace] if last else [replace, freezing]
    learner.attach(strategies)
    learn_task(learner, 0, 64)
    assert any((layer.age < 7).any() for layer in replace.layers)  # of 8 steps
    batch = examples(learner, 0, seed=77)
    then = view_outputs(learner, freezing, 0, batch)
    learn_task(learner, 1, 64)
    assert torch.equal(view_outputs(learner, freezing, 0, batch), then)


def test_utility_is_mean_activity_times_outgoing_weights() -> None:
    layers = two_hidden_layers()
    learner = plain_learner(layers, lr=0.0)
    strategy = ContinualBackprop(1e-9, decay=0.9, interval=2)
    batch = vector_batch(8, 4, 3)
    strategy.observe(batch, learner)
    for _ in range(6):
        strategy.after_step(batch, learner)
    h = torch.relu(layers[0](batch.obs["x"][0]))
    expected = (1 - 0.9**6) * h.abs().mean(0) * layers[2].weight.abs().sum(0)
    torch.testing.assert_close(
        strategy.layers[0].utility.double(), expected.detach(), rtol=1e-5, atol=1e-7
    )


def test_the_least_useful_mature_unit_is_replaced_at_the_given_rate() -> None:
    """rate * units * steps units are replaced.

    Incoming weights are within the initial bound; outgoing weights and Adam's moments are 0.
    """
    layers = two_hidden_layers()
    learner = plain_learner(layers, lr=1e-3, adam=True)
    strategy = ContinualBackprop(1 / 60 + 1e-9, maturity=5, decay=0.5, interval=1)
    batch = vector_batch(8, 4, 3)
    strategy.observe(batch, learner)
    for _ in range(5):
        learner.optimizer.zero_grad()
        learner.loss(batch).backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        strategy.after_step(batch, learner)
    before = weights(learner.module)
    for _ in range(9):  # 6 units * 1/60 * 9 steps: less than one unit
        strategy.after_step(batch, learner)
    assert same(weights(learner.module), before)
    least = int(strategy.layers[0].utility.argmin())
    strategy.after_step(batch, learner)
    changed = [int(i) for i in (layers[0].weight != before[0]).any(1).nonzero()]
    assert changed == [least]
    assert float(layers[0].weight[least].detach().abs().max()) <= 4**-0.5
    assert not layers[2].weight[:, least].any()
    assert float(layers[0].bias[least].detach()) == 0.0
    moments = learner.optimizer.state[layers[2].weight]["exp_avg"]
    assert not moments[:, least].any()
    assert moments.any()
    assert float(strategy.layers[0].age[least]) == 0.0


def test_a_young_unit_is_not_replaced_for_its_youth() -> None:
    """u = (1 - decay^age) times the mean contribution, so units are compared by the quotient."""
    layers = two_hidden_layers()
    learner = plain_learner(layers)
    strategy = ContinualBackprop(1 / 6, maturity=10, decay=0.99, interval=1)
    batch = vector_batch(8, 4, 3)
    strategy.observe(batch, learner)
    layer = strategy.layers[0]
    h = torch.relu(layers[0](batch.obs["x"][0])).mean(0).float()
    contribution = (h * layers[2].weight.abs().sum(0).float()).detach()
    layer.age[:] = torch.tensor([20.0, 400.0, 400.0, 400.0, 400.0, 400.0])
    layer.utility[:] = (1 - 0.99**layer.age) * contribution
    least = int(contribution.argmin())
    assert least != 0
    assert int(layer.utility.argmin()) == 0, "only because it is young"
    strategy.layers = [layer]
    strategy.after_step(batch, learner)
    assert layer.age.argmin() == least


def test_replacing_a_unit_without_effect_preserves_the_outputs() -> None:
    layers = two_hidden_layers()
    learner, batch = plain_learner(layers), vector_batch(8, 4, 3)
    strategy = ContinualBackprop(1 / 6, maturity=0, interval=1)
    strategy.observe(batch, learner)
    with torch.no_grad():
        layers[2].weight[:, 1] = 0.0  # a unit without effect
    before = learner.outputs(batch).detach()
    frozen = layers[4].weight.detach().clone()
    strategy.layers = strategy.layers[:1]
    strategy.after_step(batch, learner)
    torch.testing.assert_close(learner.outputs(batch).detach(), before, rtol=0, atol=1e-12)
    assert torch.equal(layers[4].weight, frozen)
    assert strategy.layers[0].age.tolist().index(0.0) == 1


def test_a_state_of_another_number_of_layers_is_refused() -> None:
    learner, batch = plain_learner(two_hidden_layers()), vector_batch(8, 4, 3)
    strategy = ContinualBackprop()
    strategy.observe(batch, learner)
    state = strategy.state_dict()
    assert len(state["units"]) == 2
    strategy.load_state_dict(state | {"units": state["units"][:1]}, learner)
    with pytest.raises(ValueError, match="shorter"):
        strategy.observe(batch, learner)
