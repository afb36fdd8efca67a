"""Path integrals of SI and RWalk with weights that are added, frozen and unfrozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop_helpers import (
    FlatNet,
    distance,
    update,
    vector_batch,
)
from strategy_helpers import (
    Named,
    Regression,
    TaskAgnosticLearner,
    Weights,
    classifier,
    make_learner,
    one_layer,
    regression_batches,
    snapshot,
)
from torch import Tensor, nn

from everloop.loop import EWC, L2, MAS, SI, Categorical, RWalk
from everloop.loop.strategies.parts.path_integral import PathIntegral
from everloop.loop.strategies.parts.quadratic import Quadratic

SI_AND_RWALK = pytest.mark.parametrize("kind", [SI, lambda: RWalk(interval=2)], ids=["si", "rwalk"])


@SI_AND_RWALK
def test_weights_may_be_added_within_a_task(kind: Callable[[], Any]) -> None:
    strategy = kind()
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3))
    learner = TaskAgnosticLearner(FlatNet(layers, "x").double(), Categorical(3))
    batch = vector_batch(20, 4, 3)
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    update(learner, batch)
    layers.append(nn.Linear(3, 3).double())
    learner.optimizer.add_param_group({"params": list(layers[1].parameters())})
    learner.attach([strategy])
    for _ in range(3):
        update(learner, batch)
    strategy.end_task(Named(), [batch], learner)
    assert set(strategy.penalty.precision) == set(learner.weights())
    assert float(strategy.penalty.precision["layers.1.weight"].max()) > 0


@pytest.mark.parametrize("before_end", [True, False], ids=["before end_task", "after end_task"])
@SI_AND_RWALK
def test_weights_may_be_frozen_added_and_unfrozen_between_tasks(
    kind: Callable[[], Any], before_end: bool
) -> None:
    """Adapters and columns do so. Trained weights get a new anchor; frozen ones keep theirs."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    learner, strategy = TaskAgnosticLearner(FlatNet(layers, "x").double(), Categorical(3)), kind()
    learner.attach([strategy])
    anchors: list[Weights] = []
    for task, trained in enumerate([True, False, True]):
        layers[0].requires_grad_(trained)
        if task == 1:
            layers.append(nn.Linear(3, 3).double())
            learner.add_weights(list(layers[2].parameters()))
        batch = vector_batch(20, 4, 3, seed=task)
        strategy.begin_task(Named(task), learner)
        for _ in range(5):
            update(learner, batch)
        then = snapshot(learner)
        layers[0].requires_grad_(trained and not (before_end and task == 0))
        strategy.end_task(Named(task), [batch], learner)
        anchors.append(dict(strategy.penalty.anchor))
        for name in learner.weights():
            assert torch.equal(anchors[-1][name], then[name])
            assert float(strategy.penalty.precision[name].max()) > 0
    assert ("layers.0.weight" in anchors[0]) is not before_end
    assert all(
        anchors[1][name] is anchors[0][name] for name in anchors[0] if name.startswith("layers.0")
    )
    assert set(anchors[2]) == set(learner.weights())


def numbers_stored(strategy: Any) -> int:
    """The count of floats in the tensors that a strategy stores."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and not isinstance(value, nn.Parameter)
        ):
            found[value.data_ptr()] = value.numel()
        for part in (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, (list, tuple))
            else vars(value).values()
        ):
            if (
                isinstance(part, (Tensor, dict, list, tuple, Quadratic, PathIntegral))
                and part is not value
            ):
                visit(part)

    visit(strategy)
    return sum(found.values())


@pytest.mark.parametrize("kind", [L2, EWC, MAS, SI, RWalk])
def test_the_traits_state_the_numbers_stored_per_weight(
    kind: Callable[[], Any],
) -> None:
    learner, strategy = classifier("mlp")[0], kind()
    learner.attach([strategy])
    for task in range(2):
        batch = vector_batch(20, 4, 3, seed=task)
        strategy.begin_task(Named(task), learner)
        for _ in range(3):
            update(learner, batch)
        if task == 0:
            strategy.end_task(Named(task), [batch], learner)
    assert numbers_stored(strategy) == strategy.traits.copies * sum(
        p.numel() for p in learner.weights().values()
    )


@SI_AND_RWALK
def test_tasks_of_one_phase_count_once(kind: Callable[[], Any]) -> None:
    learner, strategy = Regression(), kind()
    learner.attach([strategy])
    batches = regression_batches(0, 5)
    for task in range(2):
        strategy.begin_task(Named(task), learner)
    for batch in batches:
        learner.take_step(batch)
    strategy.end_task(Named(0), batches, learner)
    once = dict(strategy.penalty.precision)
    strategy.end_task(Named(1), batches, learner)
    assert distance(list(strategy.penalty.precision.values()), list(once.values())) < 1e-12


def test_the_path_integral_takes_the_gradient_before_clipping() -> None:
    """omega = -sum g (w_after - w_before), with g as it is before the step is clipped."""
    learner, path = make_learner(one_layer(bias=False)), PathIntegral()
    w = learner.module.layers.weight
    for g, clipped in ((3.0, 1.0), (-2.0, -1.0), (None, None)):
        w.grad = None if g is None else torch.full_like(w, g)
        path.before_step(learner)
        w.grad = None if clipped is None else torch.full_like(w, clipped)
        with torch.no_grad():
            w += 0.0 if clipped is None else -0.5 * clipped
        path.after_step()
    expected = torch.full_like(w, 3.0 * 0.5 + 2.0 * 0.5)
    torch.testing.assert_close(path.omega["layers.weight"], expected, rtol=0, atol=1e-12)
    path.clear()
    assert not path.omega["layers.weight"].any()
