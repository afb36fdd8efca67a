"""Schedules of the learning rate: cosine, plateau, drift."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from loop_helpers import distance, mlp, stream, update, weights
from stub_helpers import Recorder
from torch import nn

from everloop.agents import MLP, Classifier
from everloop.loop import SupervisedLearner, Training
from everloop.loop.learners.learning_rate import PATIENCE, Cosine, DriftAdaptive, Plateau
from everloop.loop.learners.supervised import LOG_EVERY


def optimizer(lr: float = 0.5) -> torch.optim.Optimizer:
    """SGD with two parameter groups, the second one at twice the rate."""
    return torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))]},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 2 * lr},
        ],
        lr=lr,
    )


def rates(o: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in o.param_groups]


def test_a_cosine_restarts_with_each_task() -> None:
    o = optimizer()
    rate = Cosine(o)
    for updates in (10, 4):
        rate.begin(updates)
        for t in range(updates):
            rate.next()
            factor = (1 + math.cos(math.pi * t / updates)) / 2
            assert rates(o) == pytest.approx([0.5 * factor, factor], abs=1e-7)


def test_the_learner_follows_the_cosine() -> None:
    learner = SupervisedLearner(mlp(), stream(8), Training(0.1, rate="cosine"))
    recorder = Recorder()
    learner.attach([recorder])
    for task in (0, 1):
        learner.learn([task], 40)
    expected = [0.05 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]
    assert recorder.rates == pytest.approx(2 * expected, abs=1e-7)


def test_a_plateau_halves_the_rate_until_the_next_task() -> None:
    o = optimizer()
    rate = Plateau(o)
    rate.begin(100)
    for loss in [3.0, 2.0] + [2.5] * PATIENCE:
        rate.average(loss)
        assert rates(o) == [0.5, 1.0]
    rate.average(2.5)
    assert rates(o) == [0.25, 0.5]
    rate.begin(100)
    assert rates(o) == [0.5, 1.0]


def test_a_drift_restores_the_rate_but_a_new_task_does_not() -> None:
    o = optimizer()
    rate = DriftAdaptive(o)
    for _ in range(4 * PATIENCE):
        rate.average(0.1)
    low = rates(o)[0]
    assert low < 0.2
    rate.begin(100)
    assert rates(o)[0] == low
    jumps = 0
    while rates(o)[0] < 0.5:
        rate.average(2.0)
        jumps += 1
        assert jumps <= 3, "a jump of the loss is detected within a few averages"


def test_the_schedule_gets_the_average_losses_that_are_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = SupervisedLearner(mlp(), stream(8), Training(rate="plateau"))
    averages = []
    logged = []
    monkeypatch.setattr(learner.rate, "average", averages.append)
    learner.on_log = logged.append
    learner.learn([0], 2 * LOG_EVERY * 8)
    assert len(averages) == 2
    assert [scalars["train/loss"] for scalars in logged] == averages
    assert [scalars["train/learning_rate"] for scalars in logged] == [1e-3, 1e-3]


def test_without_river_the_error_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(
        ImportError, match=r'needs the package river: pip install "everloop\[drift\]"'
    ):
        SupervisedLearner(mlp(), stream(8), Training(rate="drift"))


def test_a_step_of_sgd_is_the_gradient_times_the_rate() -> None:
    world = stream()
    net = Classifier(MLP((8, 8, 1), (6,)), 10)
    learner = SupervisedLearner(net, world, Training(0.3), torch.optim.SGD(net.parameters(), 0.3))
    batch = learner.rollout(stream(), [0], 1, 0)
    before = weights(learner.module)
    gradients = torch.autograd.grad(learner.loss(batch), list(learner.module.parameters()))
    update(learner, batch)
    expected = [w - 0.3 * g for w, g in zip(before, gradients, strict=True)]
    assert distance(weights(learner.module), expected) < 1e-7
