"""A linear classifier with stored tasks for the tests of GEM and A-GEM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    vector_batch,
    vector_learner,
)
from strategy_helpers import Named
from torch import nn

from everloop.loop import AGEM, GEM, Batch

INPUTS = 3
CLASSES = 4
BOTH_METHODS = pytest.mark.parametrize("kind", [AGEM, GEM])
Vector = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32)


def task_batch(task: int, examples: int = 6) -> Batch:
    """Random examples of one task."""
    return replace(
        vector_batch(examples, INPUTS, CLASSES, seed=task), task=torch.full((examples,), task)
    )


def learner_with_memory(
    strategy: AGEM | GEM, past: Sequence[int], current: int | None = None
) -> FixedLearner:
    """A linear classifier whose strategy has stored a batch of each past and the current task."""
    torch.manual_seed(0)
    learner = vector_learner(nn.Linear(INPUTS, CLASSES), CLASSES)
    learner.attach([strategy])
    for task in [*past, *([] if current is None else [current])]:
        strategy.begin_task(Named(task), learner)
        strategy.observe(task_batch(task), learner)
        if task != current:
            strategy.end_task(Named(task), [], learner)
    return learner


def give_gradient(learner: FixedLearner, seed: int) -> Vector:
    """Set a random gradient, as if from a fresh batch, and return it as one vector."""
    g = torch.Generator().manual_seed(seed)
    for p in learner.module.parameters():
        p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
    return gradient_of(learner)


def gradient_of(learner: FixedLearner) -> Vector:
    return (
        torch.cat([p.grad.flatten() for p in learner.module.parameters() if p.grad is not None])
        .numpy()
        .copy()
    )


def cross_entropy_gradient(learner: FixedLearner, batch: Batch) -> Vector:
    """Gradient of the mean cross-entropy of a linear classifier: mean of (softmax - one-hot) x'."""
    layer: Any = (
        learner.module.layers[0]
        if isinstance(learner.module.layers, nn.Sequential)
        else learner.module.layers
    )
    x, y = batch.obs["x"][0], batch.target[0]  # type: ignore[index]
    error = (
        torch.softmax(x @ layer.weight.T + layer.bias, -1) - torch.eye(CLASSES, dtype=x.dtype)[y]
    ) / len(y)
    return torch.cat([(error.T @ x).flatten(), error.sum(0)]).detach().numpy()


def next_task_draws(
    strategy: AGEM | GEM, learner: FixedLearner, tasks: Sequence[Sequence[int]]
) -> list[Batch]:
    """The strategy's next draw for each set of tasks, without advancing its generator."""
    state = strategy.memory.rng.bit_generator.state
    drawn = [strategy.draw(learner, np.array(ids)) for ids in tasks]
    strategy.memory.rng.bit_generator.state = state
    return [batch for batch in drawn if batch is not None]


def close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
