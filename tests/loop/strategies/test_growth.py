"""Growth: when it adds units, and their training."""

from __future__ import annotations

from dataclasses import replace

import torch
from loop_helpers import stream
from torch import Tensor

from everloop.agents import Classifier, GrowingMLP
from everloop.loop import (
    EWC,
    Growth,
    SupervisedLearner,
)


def test_a_network_grows_at_high_loss_and_keeps_its_outputs() -> None:
    def grown(threshold: float) -> int:
        torch.manual_seed(0)
        learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
        growth = Growth(units=4, threshold=threshold, patience=4, limit=3)
        learner.attach([growth])
        growth.begin_task(learner.world.tasks[0], learner)
        learner.learn([0], 8 * 40)
        branches = learner.module.get_submodule("backbone.branches")
        assert len(list(branches.children())) == growth.grown
        return growth.grown

    assert grown(0.0) == 3
    assert grown(100.0) == 0
    torch.manual_seed(0)
    net, x = GrowingMLP((8, 8, 1), (6, 6)), torch.randint(256, (5, 8, 8, 1), dtype=torch.uint8)
    before = net(x)
    net.add_capacity(7)
    assert torch.equal(net(x), before)
    assert sum(p.numel() for p in net.branches.parameters()) == 64 * 7 + 7 + 7 * 6


def test_added_units_are_trained_and_covered_by_ewc() -> None:
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
    growth, ewc = Growth(units=4, threshold=0.0, patience=4, limit=1), EWC(10.0)
    learner.attach([growth, ewc])
    for task in range(2):
        for s in (growth, ewc):
            s.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        ewc.end_task(learner.world.tasks[task], [learner.rollout(stream(), [task], 4, 0)], learner)
    V = learner.module.get_submodule("backbone.branches.0.2").weight
    assert float(V.detach().abs().max()) > 0  # type: ignore[operator, union-attr]
    assert "backbone.branches.0.2.weight" in ewc.penalty.precision


def test_units_are_added_by_the_mean_loss_of_each_window_of_one_task() -> None:
    """The loss of wrong outputs is log 10 = 2.3, that of right ones 0; the threshold is 1.2."""
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(GrowingMLP((8, 8, 1), (6, 6)), 10), stream())
    growth = Growth(units=4, threshold=1.2, patience=4)
    learner.attach([growth])
    batch = learner.rollout(stream(), [0], 1, seed=0)
    assert batch.target is not None
    wrong: Tensor = torch.zeros(*batch.target.shape, 10)
    right = wrong.scatter(-1, batch.target[..., None], 100.0)

    def grown_after(losses: str) -> list[int]:
        counts = []
        for letter in losses:
            output = wrong if letter == "w" else right
            growth.observe(replace(batch, output=output), learner)
            counts.append(growth.grown)
        return counts

    assert grown_after("rrww") == [0, 0, 0, 0]  # a mean of 1.15
    assert grown_after("wwrw") == [0, 0, 0, 1]  # a mean of 1.73, without earlier losses
    assert grown_after("www") == [1, 1, 1]
    growth.begin_task(learner.world.tasks[1], learner)
    assert grown_after("wrrr") == [1, 1, 1, 1]  # losses of an earlier task do not count
