"""Learners with a memory of examples, their next draws, and explicit losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    foreign_step,
    perturb,
    vector_batch,
)
from strategy_helpers import TaskAgnosticLearner
from torch import Tensor, nn

from everloop.loop import (
    Batch,
    Categorical,
    Forward,
    Learner,
    Strategy,
)
from everloop.loop.strategies.parts.rehearsal import Rehearsal

INPUTS = 3
CLASSES = 5
RATE = 0.1
PPO_KINDS = pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])
seeds = st.integers(0, 2**31)


def rehearsal_learner(
    strategies: Sequence[Strategy] = (),
    likelihood: Any = None,
    outputs: int = CLASSES,
    groups: bool = False,
) -> TaskAgnosticLearner:
    """Two layers in double precision; with `groups` the second has a learning rate of 0.3."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    rates = (
        [{"params": layers[0].parameters()}, {"params": layers[2].parameters(), "lr": 0.3}]
        if groups
        else layers.parameters()
    )
    learner = TaskAgnosticLearner(
        FlatNet(layers, "x"), likelihood or Categorical(outputs), torch.optim.SGD(rates, lr=RATE)
    )
    learner.attach(strategies)
    return learner


def examples(
    count: int, task: int = 0, seed: int = 0, labels: Sequence[int] | None = None
) -> Batch:
    batch = vector_batch(count, INPUTS, CLASSES, seed=seed)
    target = batch.target if labels is None else torch.tensor([labels])
    return replace(batch, target=target, task=torch.full((count,), task))


def step(learner: FixedLearner, batch: Batch) -> None:
    """One update in which strategies observe the fresh batch before they replay."""
    output = learner.forward(batch)
    fresh = replace(batch, output=output.prediction.detach())
    for strategy in learner.strategies:
        strategy.observe(fresh, learner)
    loss = F.cross_entropy(output.prediction.flatten(0, 1), batch.target.flatten())  # type: ignore[union-attr]
    loss = learner.updater.total_loss(loss, Forward(fresh, output), [])
    foreign_step(learner, loss, fresh)


def next_draws(
    strategy: Rehearsal, learner: Learner, *counts: int | None, tasks: Sequence[int] | None = None
) -> list[Batch]:
    """The strategy's next draw for each count, without advancing its generator."""
    state = strategy.memory.rng.bit_generator.state
    drawn = [
        strategy.draw(learner, None if tasks is None else np.array(tasks), count)
        for count in counts
    ]
    strategy.memory.rng.bit_generator.state = state
    assert all(batch is not None for batch in drawn)
    return [batch for batch in drawn if batch is not None]


def stored(strategy: Rehearsal, learner: Learner) -> Batch:
    return strategy.read(np.arange(len(strategy.memory)), learner)


def two_layer_outputs(module: Any, x: Tensor) -> Tensor:
    """Outputs of the two layers, from their weights."""
    first, last = module.layers[-3], module.layers[-1]
    return torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias


def cross_entropies(z: Tensor, y: Tensor) -> Tensor:
    """-log(exp(z_y) / sum_k exp(z_k)) of each row."""
    return z.exp().sum(-1).log() - z[torch.arange(len(y)), y]


def close(a: Sequence[Tensor], b: Sequence[Tensor], rtol: float = 1e-9, atol: float = 1e-9) -> bool:
    return len(a) == len(b) and all(
        torch.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(a, b, strict=True)
    )


def perturb_weights(learner: Learner) -> None:
    """Move the weights, so that the network's outputs differ from the stored ones."""
    torch.manual_seed(0)
    perturb(learner.module, 1, 0.1)


class OutputRecorder(Strategy):
    """Records the network's outputs for every fresh batch before its update."""

    def __init__(self) -> None:
        self.records: list[tuple[Batch, Tensor, Tensor | None]] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        with torch.no_grad():
            output = learner.forward(batch)
        self.records.append(
            (
                batch,
                output.prediction.clone(),
                None if output.value is None else output.value.clone(),
            )
        )

    def by_observation(self, key: str) -> dict[bytes, tuple[Tensor, Tensor | None]]:
        """Prediction and value of each example, by the bytes of its observation."""
        found = {}
        for batch, prediction, value in self.records:
            for i in range(len(batch)):
                found[batch.obs[key][:, i].numpy().tobytes()] = (
                    prediction[:, i],
                    None if value is None else value[:, i],
                )
        return found
