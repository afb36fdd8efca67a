"""Shrink and perturb: it mixes old and fresh weights at each task's start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attached_helpers import plain_step
from loop_helpers import (
    distance,
    same,
    stream,
    weights,
)
from torch import nn

from everloop.agents import MLP, Classifier
from everloop.loop import (
    ShrinkAndPerturb,
    SupervisedLearner,
    attach,
)


def test_shrink_and_perturb_mixes_weights_from_the_second_task_on() -> None:
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
    # uniform, like the initialisation of nn.Linear
    assert float(fresh[0].std()) == pytest.approx(64**-0.5 / 3**0.5, rel=0.1)
    pure = ShrinkAndPerturb(shrink=0.5, noise=0.0)
    then = weights(learner.module)
    pure.begin_task(learner.world.tasks[0], learner)
    pure.after_step(learner.rollout(stream(), [0], 1, 0), learner)
    for task in (1, 2):  # tasks of one phase: no step in between
        pure.begin_task(learner.world.tasks[task], learner)
    assert distance(weights(learner.module), [0.5 * w for w in then]) < 1e-7


class Ones(nn.Linear):
    """Its initial weights are 1."""

    def reset_parameters(self) -> None:
        for p in self.parameters():
            nn.init.ones_(p)


def test_fresh_weights_are_added_with_their_sign() -> None:
    module = Ones(4, 3)
    for p in module.parameters():
        nn.init.constant_(p, 0.5)
    loop = attach(
        [ShrinkAndPerturb(shrink=0.7, noise=0.2)], module, torch.optim.SGD(module.parameters(), 0.0)
    )
    x, y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    loop.begin_task(0)
    loop.observe(x, y)
    plain_step(module, loop.optimizer, x, y)
    loop.end_task([(x, y)])
    loop.begin_task(1)
    for p in module.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.7 * 0.5 + 0.2 * 1.0))


def test_in_a_foreign_loop_only_the_network_is_copied() -> None:
    """The copy for fresh weights has no hooks."""

    class CountedLinear(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            assert not self._forward_hooks
            self.copies += 1
            return CountedLinear(4, 3)

    module = CountedLinear(4, 3)
    module.copies = 0
    loop = attach([ShrinkAndPerturb()], module, torch.optim.SGD(module.parameters(), lr=0.1))
    for task in range(2):
        loop.begin_task(task)
        loop.observe(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
        module(torch.zeros(2, 4)).sum().backward()
        loop.optimizer.step()
        loop.end_task([(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))])
    assert module.copies == 1
