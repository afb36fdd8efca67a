"""MAS: its importance and its penalty."""

from __future__ import annotations

import pytest
import torch
from loop_helpers import (
    FixedLearner,
    distance,
    vector_batch,
)
from strategy_helpers import (
    Named,
    Weights,
    added_gradient,
    by_single_examples,
    classifier,
    move_weights,
    penalty_gradient,
)

from everloop.loop import MAS, Batch


def by_differences(learner: FixedLearner, batch: Batch, step: float = 1e-5) -> Weights:
    """Mean over examples of |d |f(x)|^2 / d w|, by central differences in each weight."""
    result = {}
    with torch.no_grad():
        for name, p in learner.weights().items():
            slopes = torch.zeros_like(p)
            for i in range(p.numel()):
                flat, values = p.view(-1), []
                for shift in (step, -2 * step):
                    flat[i] += shift
                    values.append((learner.outputs(batch) ** 2).sum((0, 2)))
                flat[i] += step
                slopes.view(-1)[i] = ((values[0] - values[1]) / (2 * step)).abs().mean()
            result[name] = slopes
    return result


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("net", ["mlp", "convolution", "layer norm"])
def test_mas_importance_equals_finite_differences(net: str, length: int) -> None:
    learner, size = classifier(net)
    batch, strategy = vector_batch(9, size, 3, length), MAS()
    unlabelled = Batch(batch.obs, batch.start)
    expected = by_differences(learner, batch)
    strategy.end_task(Named(), [unlabelled], learner)
    for name, omega in strategy.penalty.precision.items():
        torch.testing.assert_close(omega, expected[name], rtol=1e-6, atol=1e-8)
    parameters = list(learner.weights().values())
    together = torch.autograd.grad((learner.outputs(batch) ** 2).sum((0, 2)).mean(), parameters)
    # the mean of absolute gradients is not the absolute mean gradient
    assert distance(list(expected.values()), [g.abs() for g in together]) > 1e-2


def test_mas_importance_depends_on_the_examples_not_on_the_batches() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(50, 4, 3)
    found = []
    for batches in ([batch], [batch[:1], batch[1:38], batch[38:]], [batch[:45], batch[45:]]):
        strategy = MAS(examples=45)
        strategy.end_task(Named(), batches, learner)
        found.append(list(strategy.penalty.precision.values()))
    assert distance(found[0], found[1]) < 1e-12
    assert distance(found[0], found[2]) < 1e-12
    strategy = MAS(examples=46)
    strategy.end_task(Named(), [batch], learner)
    assert distance(found[0], list(strategy.penalty.precision.values())) > 1e-6


def test_mas_sums_importance_and_anchors_the_last_weights() -> None:
    """It adds the gradient of strength * sum_i Omega_i (w_i - w*_i)^2."""
    learner, strategy = classifier("mlp")[0], MAS(0.7)
    importance = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    for task in range(3):
        last, batch = move_weights(learner, task), vector_batch(7, 4, 3, seed=task)
        expected = by_single_examples(
            learner, batch, lambda b: (learner.outputs(b) ** 2).sum((0, 2))[None], 1
        )
        strategy.end_task(Named(task), [batch], learner)
        importance = {
            n: total + e for (n, total), e in zip(importance.items(), expected, strict=True)
        }
        move_weights(learner, 10 + task)
        assert (
            distance(
                added_gradient(learner, strategy), penalty_gradient(learner, 0.7, importance, last)
            )
            < 1e-10
        )
