"""Learners with a memory of examples, what they are about to draw, and losses written out."""

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
from strategy_helpers import Untold
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
KINDS = pytest.mark.parametrize("recurrent", [False, True], ids=["ppo", "recurrent ppo"])
seeds = st.integers(0, 2**31)


def rehearsal_learner(
    strategies: Sequence[Strategy] = (),
    likelihood: Any = None,
    outputs: int = CLASSES,
    groups: bool = False,
) -> Untold:
    """Two layers in double precision; with `groups` the second one learns at a rate of its own."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    rates = (
        [{"params": layers[0].parameters()}, {"params": layers[2].parameters(), "lr": 0.3}]
        if groups
        else layers.parameters()
    )
    learner = Untold(
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
    """One update, as a supervised learner takes it."""
    output = learner.forward(batch)
    fresh = replace(batch, output=output.prediction.detach())
    for strategy in learner.strategies:
        strategy.observe(fresh, learner)
    loss = F.cross_entropy(output.prediction.flatten(0, 1), batch.target.flatten())  # type: ignore[union-attr]
    loss = learner.updater.total_loss(loss, Forward(fresh, output), [])
    foreign_step(learner, loss, fresh)


def foresee(
    strategy: Rehearsal, learner: Learner, *counts: int | None, tasks: Sequence[int] | None = None
) -> list[Batch]:
    """What the strategy is about to draw, one batch for each count; it draws the same
    afterwards.
    """
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


def outputs_by_hand(module: Any, x: Tensor) -> Tensor:
    """The outputs of the two layers."""
    first, last = module.layers[-3], module.layers[-1]
    return torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias


def cross_entropies(z: Tensor, y: Tensor) -> Tensor:
    """-log(exp(z_y) / sum exp(z)) of each row."""
    return z.exp().sum(-1).log() - z[torch.arange(len(y)), y]


def close(a: Sequence[Tensor], b: Sequence[Tensor], rtol: float = 1e-9, atol: float = 1e-9) -> bool:
    return len(a) == len(b) and all(
        torch.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(a, b, strict=True)
    )


def away(learner: Learner) -> None:
    """Move the weights, so that what was stored is no longer what the network says."""
    torch.manual_seed(0)
    perturb(learner.module, 1, 0.1)


class Watch(Strategy):
    """Notes what the network puts out for every fresh batch, before the update that learns
    from it.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[Batch, Tensor, Tensor | None]] = []

    def observe(self, batch: Batch, learner: Learner) -> None:
        with torch.no_grad():
            output = learner.forward(batch)
        self.seen.append(
            (
                batch,
                output.prediction.clone(),
                None if output.value is None else output.value.clone(),
            )
        )

    def by_observation(self, key: str) -> dict[bytes, tuple[Tensor, Tensor | None]]:
        """What was put out for each example, by the example's bytes."""
        found = {}
        for batch, prediction, value in self.seen:
            for i in range(len(batch)):
                found[batch.obs[key][:, i].numpy().tobytes()] = (
                    prediction[:, i],
                    None if value is None else value[:, i],
                )
        return found
