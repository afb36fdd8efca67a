"""Continual backprop, shrink and perturb, Reptile, MAML, La-MAML: the written rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architecture_helpers import examples, seen, teach, told
from loop_helpers import (
    FixedLearner,
    FlatNet,
    distance,
    same,
    stream,
    update,
    vector_batch,
    weights,
)
from torch import Tensor, nn

from everloop.agents import MLP, Classifier, GrowingMLP, ProgressiveMLP
from everloop.loop import (
    Batch,
    Categorical,
    ContinualBackprop,
    Growth,
    L2Init,
    LaMAML,
    LoRA,
    Progressive,
    ShrinkAndPerturb,
    Strategy,
    SupervisedLearner,
    attach,
)
from everloop.loop.strategies.continual_backprop import hidden_layers


def learner_of(layers: nn.Module, lr: float = 0.1, adam: bool = False) -> FixedLearner:
    module = FlatNet(layers, "x").double()
    optimizer = (
        torch.optim.Adam(module.parameters(), lr=lr)
        if adam
        else torch.optim.SGD(module.parameters(), lr=lr)
    )
    return FixedLearner(module, Categorical(3), optimizer)


def two_layers(seed: int = 0, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 5), act(), nn.Linear(5, 3))


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity])
def test_hidden_units_are_found_behind_any_usual_activation(act: type[nn.Module]) -> None:
    layers = two_layers(act=act)
    found = hidden_layers(learner_of(layers), vector_batch(2, 4, 3))
    assert [(layer.reads, layer.feeds) for layer in found] == [
        (layers[0], layers[2]),
        (layers[2], layers[4]),
    ]


def test_units_that_something_else_reads_too_or_changes_are_left_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.b(h) + self.c(h)  # type: ignore[no-any-return]

    class Skipped(Forked):
        """The units of the first layer go on beside the second one, and its own go on alone."""

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
        learner = learner_of(layers)
        assert hidden_layers(learner, vector_batch(2, 4, 3)) == []
        with pytest.raises(
            ValueError, match="continual_backprop finds no hidden units; use a network"
        ):
            ContinualBackprop(0.1).observe(vector_batch(2, 4, 3), learner)


def test_looking_for_units_changes_nothing() -> None:
    layers = two_layers()
    learner, before = learner_of(layers), weights(layers)
    hidden_layers(learner, vector_batch(2, 4, 3))
    assert same(weights(learner.module), before)
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("keeper", "network"), [(LoRA, MLP), (Progressive, ProgressiveMLP)])
def test_units_that_another_strategy_has_frozen_stay(keeper: Any, network: Any, last: bool) -> None:
    learner = told(network((8, 8, 1), (16, 16)))
    replace, keep = ContinualBackprop(0.05, maturity=2, interval=1), keeper()
    strategies: list[Strategy] = [keep, replace] if last else [replace, keep]
    learner.attach(strategies)
    teach(learner, strategies, 0, 64)
    assert any((layer.age < 7).any() for layer in replace.layers)  # of 8 steps
    batch = examples(learner, 0, seed=77)
    then = seen(learner, keep, 0, batch)
    teach(learner, strategies, 1, 64)
    assert torch.equal(seen(learner, keep, 0, batch), then)


def test_utility_is_the_running_mean_of_activity_times_outgoing_weights() -> None:
    layers = two_layers()
    learner, strategy, batch = (
        learner_of(layers, lr=0.0),
        ContinualBackprop(1e-9, decay=0.9, interval=2),
        vector_batch(8, 4, 3),
    )
    strategy.observe(batch, learner)
    for _ in range(6):
        strategy.after_step(batch, learner)
    h = torch.relu(layers[0](batch.obs["x"][0]))
    expected = (1 - 0.9**6) * h.abs().mean(0) * layers[2].weight.abs().sum(0)
    torch.testing.assert_close(
        strategy.layers[0].utility.double(), expected.detach(), rtol=1e-5, atol=1e-7
    )


def test_the_least_useful_mature_units_are_replaced_at_the_written_rate() -> None:
    """rate * units * steps of them; incoming weights within the initial bound, outgoing ones 0,
    moments of Adam 0.
    """
    layers = two_layers()
    learner = learner_of(layers, lr=1e-3, adam=True)
    strategy, batch = (
        ContinualBackprop(1 / 60 + 1e-9, maturity=5, decay=0.5, interval=1),
        vector_batch(8, 4, 3),
    )
    strategy.observe(batch, learner)
    for _ in range(5):
        learner.optimizer.zero_grad()
        learner.loss(batch).backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        strategy.after_step(batch, learner)
    before = weights(learner.module)
    for _ in range(9):  # 6 units * 1/60 * 9 steps: not yet a whole one
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


def test_a_replaced_unit_changes_the_outputs_by_what_it_gave_and_no_more() -> None:
    layers = two_layers()
    learner, batch = learner_of(layers), vector_batch(8, 4, 3)
    strategy = ContinualBackprop(1 / 6, maturity=0, interval=1)
    strategy.observe(batch, learner)
    with torch.no_grad():
        layers[2].weight[:, 1] = 0.0  # a unit of no use
    before = learner.outputs(batch).detach()
    frozen = layers[4].weight.detach().clone()
    strategy.layers = strategy.layers[:1]
    strategy.after_step(batch, learner)
    torch.testing.assert_close(learner.outputs(batch).detach(), before, rtol=0, atol=1e-12)
    assert torch.equal(layers[4].weight, frozen)
    assert strategy.layers[0].age.tolist().index(0.0) == 1


def test_shrink_and_perturb_is_the_written_mixture_before_every_task_but_the_first() -> None:
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(MLP((8, 8, 1), (12,)), 10), stream())
    strategy = ShrinkAndPerturb(shrink=0.7, noise=0.2, seed=3)
    before = weights(learner.module)
    strategy.begin_task(learner.world.tasks[0], learner)
    assert same(weights(learner.module), before)
    strategy.after_step(learner.rollout(stream(), [0], 1, 0), learner)
    strategy.begin_task(learner.world.tasks[1], learner)
    fresh = [
        (now - 0.7 * old) / 0.2 for now, old in zip(weights(learner.module), before, strict=True)
    ]
    bounds = [64**-0.5, 64**-0.5, 12**-0.5, 12**-0.5]
    assert all(float(x.abs().max()) <= b + 1e-5 for x, b in zip(fresh, bounds, strict=True))
    assert float(fresh[0].std()) == pytest.approx(
        64**-0.5 / 3**0.5, rel=0.1
    )  # uniform, as nn.Linear draws
    pure = ShrinkAndPerturb(shrink=0.5, noise=0.0)
    then = weights(learner.module)
    pure.begin_task(learner.world.tasks[0], learner)
    pure.after_step(learner.rollout(stream(), [0], 1, 0), learner)
    for task in (1, 2):  # of one phase: nothing is learned in between
        pure.begin_task(learner.world.tasks[task], learner)
    assert distance(weights(learner.module), [0.5 * w for w in then]) < 1e-7


def test_in_a_loop_of_somebody_elses_the_fresh_weights_are_of_the_network_alone() -> None:
    """Not of a copy of all that watches it."""

    class Whole(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            assert not self._forward_hooks
            self.copies += 1
            return Whole(4, 3)

    module = Whole(4, 3)
    module.copies = 0
    loop = attach([ShrinkAndPerturb()], module, torch.optim.SGD(module.parameters(), lr=0.1))
    for task in range(2):
        loop.begin_task(task)
        loop.observe(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
        module(torch.zeros(2, 4)).sum().backward()
        loop.optimizer.step()
        loop.end_task([(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))])
    assert module.copies == 1


@pytest.mark.parametrize("last", [True, False])
def test_weights_that_come_while_a_task_is_learned_are_pulled_to_where_they_began(
    last: bool,
) -> None:
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
    pull, growth = L2Init(0.1), Growth(units=4, threshold=0.0, patience=3, limit=2)
    strategies: list[Strategy] = [growth, pull] if last else [pull, growth]
    learner.attach(strategies)
    for strategy in strategies:
        strategy.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 64)
    assert learner.weights().keys() == pull.penalty.anchor.keys()
    for i in range(2):
        assert not pull.penalty.anchor[f"backbone.branches.{i}.2.weight"].any()
        assert learner.weights()[f"backbone.branches.{i}.2.weight"].any()


def test_la_maml_is_the_written_update() -> None:
    """Two parts, a draw that is known, plain gradient descent; a second step has the rates of the
    first.
    """
    layers = two_layers()
    learner = learner_of(layers, lr=0.7)
    strategy = LaMAML(alpha=0.2, alpha_lr=0.5, parts=2, capacity=6, batch_size=4)
    batch, old = vector_batch(6, 4, 3), vector_batch(6, 4, 3, seed=1)
    strategy.observe(old, learner)
    drawn: list[Batch] = []
    draw = strategy.draw

    def noted(*args: Any, **kwargs: Any) -> Batch | None:
        stored = draw(*args, **kwargs)
        assert stored is not None
        drawn.append(stored)
        return stored

    strategy.draw = noted  # type: ignore[method-assign]
    learner.attach([strategy])
    rates = [torch.full_like(w, 0.2) for w in weights(learner.module)]
    for _ in range(2):
        start = weights(learner.module)
        update(learner, batch)
        fast, led = [w.clone() for w in start], [torch.zeros_like(w) for w in start]
        meta, drift = ([torch.zeros_like(w) for w in start] for _ in range(2))
        for part in (batch[:3], batch[3:]):
            g = gradients_at(fast, [(1.0, part)])
            led = [a + b for a, b in zip(led, g, strict=True)]
            fast = [w - a.clamp(min=0) * x for w, a, x in zip(fast, rates, g, strict=True)]
            ahead = gradients_at(fast, [(0.6, batch), (0.4, drawn[-1])])
            meta = [m + x / 2 for m, x in zip(meta, ahead, strict=True)]
            drift = [d + x * y / 2 for d, x, y in zip(drift, ahead, led, strict=True)]
        rates = [a + 0.5 * d for a, d in zip(rates, drift, strict=True)]
        expected = [w - a.clamp(min=0) * m for w, a, m in zip(start, rates, meta, strict=True)]
        assert distance(weights(learner.module), expected) < 1e-12
        assert distance(list(strategy.rates.values()), rates) < 1e-12


def test_la_maml_looks_ahead_without_a_trace_in_the_statistics() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    learner, batch = learner_of(layers), vector_batch(6, 4, 3)
    learner.attach([LaMAML(parts=2)])
    twin = learner_of(copy.deepcopy(layers))
    twin.outputs(batch)
    update(learner, batch)
    expected = dict(twin.module.layers.named_buffers())
    assert expected["1.num_batches_tracked"] == 1
    assert all(torch.equal(buffer, expected[name]) for name, buffer in layers.named_buffers())


def gradients_at(values: list[Tensor], parts: list[tuple[float, Batch]]) -> list[Tensor]:
    """Of the weighted sum of losses, in a network with these weights."""
    twin = learner_of(two_layers())
    with torch.no_grad():
        for p, value in zip(twin.module.parameters(), values, strict=True):
            p.copy_(value)
    loss = torch.stack([share * twin.loss(part) for share, part in parts]).sum()
    return list(torch.autograd.grad(loss, list(twin.module.parameters())))
