"""L2Init: its anchors for initial and added weights."""

from __future__ import annotations

import pytest
import torch
from loop_helpers import (
    distance,
    gradients,
    stream,
)
from strategy_helpers import (
    Named,
    added_gradient,
    make_learner,
    move_weights,
    two_layers,
)
from torch import nn

from everloop.agents import Classifier, GrowingMLP
from everloop.loop import (
    Growth,
    L2Init,
    Strategy,
    SupervisedLearner,
)


@pytest.mark.parametrize("last", [True, False])
def test_weights_added_within_a_task_are_anchored_where_they_begin(
    last: bool,
) -> None:
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
    l2_init, growth = L2Init(0.1), Growth(units=4, threshold=0.0, patience=3, limit=2)
    strategies: list[Strategy] = [growth, l2_init] if last else [l2_init, growth]
    learner.attach(strategies)
    for strategy in strategies:
        strategy.begin_task(learner.world.tasks[0], learner)
    learner.learn([0], 64)
    assert learner.weights().keys() == l2_init.penalty.anchor.keys()
    for i in range(2):
        assert not l2_init.penalty.anchor[f"backbone.branches.{i}.2.weight"].any()
        assert learner.weights()[f"backbone.branches.{i}.2.weight"].any()


def test_l2_init_keeps_the_initial_weights_as_anchor_over_tasks() -> None:
    learner, strategy = make_learner(two_layers()), L2Init(0.7)
    first = move_weights(learner, 0)
    for task in range(3):
        strategy.begin_task(Named(task), learner)
        assert (
            distance(
                added_gradient(learner, strategy),
                [2 * 0.7 * (p.detach() - first[n]) for n, p in learner.weights().items()],
            )
            < 1e-14
        )
        move_weights(learner, 20 + task)
        strategy.end_task(Named(task), [], learner)
    loss = 0.7 * sum(((p - first[n]) ** 2).sum() for n, p in learner.weights().items())
    assert distance(added_gradient(learner, strategy), gradients(loss, learner.module)) < 1e-13


def test_l2_init_anchors_added_weights_at_the_next_task() -> None:
    layers = nn.Sequential(nn.Linear(2, 2))
    learner, strategy = make_learner(layers), L2Init(0.5)
    first = move_weights(learner, 0)
    strategy.begin_task(Named(0), learner)
    layers.append(nn.Linear(2, 2).double())
    late = move_weights(learner, 1)
    strategy.begin_task(Named(1), learner)
    now = move_weights(learner, 2)
    anchor = late | first
    assert list(anchor) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert distance(added_gradient(learner, strategy), [now[n] - anchor[n] for n in anchor]) < 1e-14
    assert distance(list(first.values()), [late[n] for n in first]) > 0.1
