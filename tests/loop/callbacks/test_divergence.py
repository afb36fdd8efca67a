"""Divergence of the network from its state at the end of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from contract_helpers import active, stream_learner
from loop_helpers import (
    PPO_PARAMETERS,
    agent,
    control_learner,
    perturb,
    plant,
    random_states,
    same,
    stream,
    weights,
)
from stable_baselines3 import PPO
from torch import Tensor, nn

from everloop.contract import Output, Task
from everloop.loop import Batch, Divergence, Gaussian, Plan, Run, SupervisedLearner
from everloop.loop.evaluate import viewed
from everloop.loop.sb3.on_policy import SB3Learner

MODULES = ["encoders", "attention", "memory", "head", "value"]
ONE, TWO = Task(0, "one"), Task(1, "two")


class Case(NamedTuple):
    """A learner, the examples that its outputs are compared on, and the callback."""

    learner: SB3Learner
    probe: Batch
    divergence: Divergence


@pytest.fixture(scope="module")
def start() -> tuple[SB3Learner, Batch]:
    """A recurrent actor-critic, and examples of several steps."""
    learner = control_learner(recurrent=True)
    probe = learner.rollout(plant(6), [0], 8, seed=0)
    assert probe.length == 4
    return learner, probe


@pytest.fixture
def case(
    start: tuple[SB3Learner, Batch],
) -> Iterator[Case]:
    """The callback has the current network as the anchor of task "one"."""
    learner, probe = start
    initial = {name: value.clone() for name, value in learner.module.state_dict().items()}
    divergence = Divergence()
    divergence.remember(ONE, learner, probe)
    yield Case(learner, probe, divergence)
    learner.module.load_state_dict(initial)


def test_divergence_is_0_right_after_a_task(case: Case) -> None:
    learner = case.learner
    divergence = case.divergence
    assert divergence.update(learner) is divergence
    assert set(divergence.values) == {
        f"{kind}/one/{module}" for kind in ("kl", "weights") for module in MODULES
    } | {"kl/one/network"}
    for name, value in divergence.values.items():
        assert value == pytest.approx(0.0, abs=1e-6), name
    assert not divergence.detected


def test_before_the_end_of_a_task_there_is_no_divergence(case: Case) -> None:
    learner = case.learner
    divergence = Divergence().update(learner)
    assert divergence.values == {}
    assert not divergence.detected


def test_the_distance_of_weights_is_relative_to_their_norm(case: Case) -> None:
    """The distance of a module is |w - w*| / |w*|."""
    learner = case.learner
    divergence = case.divergence
    head = learner.module.get_submodule("head")
    then = torch.cat([p.detach().flatten() for p in head.parameters()])
    with torch.no_grad():
        for p in head.parameters():
            p.mul_(1.5)
    assert divergence.update(learner).values["weights/one/head"] == pytest.approx(0.5, rel=1e-5)
    with torch.no_grad():
        next(head.parameters())[0, 0] += 3.0
    now = torch.cat([p.detach().flatten() for p in head.parameters()])
    assert divergence.update(learner).values["weights/one/head"] == pytest.approx(
        float((now - then).norm() / then.norm()), rel=1e-5
    )
    assert all(
        divergence.values[f"weights/one/{name}"] == 0.0 for name in MODULES if name != "head"
    )


@pytest.mark.parametrize("changed", ["encoders", "attention", "memory", "head"])
def test_if_one_module_drifts_its_divergence_is_that_of_the_network(
    case: Case, changed: str
) -> None:
    learner = case.learner
    divergence = case.divergence
    perturb(learner.module.get_submodule(changed), 0, 0.3)
    values = divergence.update(learner).values
    assert values["kl/one/network"] > 1e-4
    assert values[f"kl/one/{changed}"] == pytest.approx(values["kl/one/network"], rel=1e-4)
    assert all(
        values[f"kl/one/{name}"] == pytest.approx(0.0, abs=1e-6)
        for name in MODULES
        if name != changed
    )


def test_drift_of_the_value_head_has_no_divergence(case: Case) -> None:
    learner = case.learner
    divergence = case.divergence
    perturb(learner.module.get_submodule("value"), 0, 0.3)
    values = divergence.update(learner).values
    assert values["weights/one/value"] > 0.01
    assert values["kl/one/network"] == values["kl/one/value"] == pytest.approx(0.0, abs=1e-6)


def test_divergence_is_the_mean_kl_of_old_from_new_outputs(case: Case) -> None:
    learner = case.learner
    probe = case.probe
    divergence = case.divergence
    then = learner.outputs(probe).detach()
    perturb(learner.module, 0, 0.2)
    now = learner.outputs(probe).detach()
    (m, s), (m_now, s_now) = Gaussian(2).split(then), Gaussian(2).split(now)
    expected = (
        (s_now - s + ((2 * s).exp() + (m - m_now) ** 2) / (2 * (2 * s_now).exp()) - 0.5)
        .sum(-1)
        .mean()
    )
    assert divergence.update(learner).values["kl/one/network"] == pytest.approx(
        float(expected), rel=1e-4
    )


def test_each_task_has_its_own_anchor_which_can_be_replaced(case: Case) -> None:
    learner = case.learner
    probe = case.probe
    divergence = case.divergence
    perturb(learner.module, 0, 0.2)
    divergence.remember(TWO, learner, probe)
    values = dict(divergence.update(learner).values)
    assert values["kl/two/network"] == pytest.approx(0.0, abs=1e-6)
    assert values["kl/one/network"] > 1e-4
    divergence.remember(ONE, learner, probe)
    assert divergence.update(learner).values["kl/one/network"] == pytest.approx(0.0, abs=1e-6)


def test_detected_is_true_if_any_task_is_above_the_threshold(case: Case) -> None:
    learner = case.learner
    probe = case.probe
    divergence = Divergence()
    divergence.remember(ONE, learner, probe)
    perturb(learner.module, 0, 0.2)
    divergence.remember(TWO, learner, probe)
    distance = divergence.update(learner).values["kl/one/network"]
    for threshold, expected in ((distance * 0.9, True), (distance * 1.1, False)):
        divergence.threshold = threshold
        assert divergence.update(learner).detected is expected


def test_drift_of_weights_without_effect_is_not_detected(case: Case) -> None:
    learner = case.learner
    probe = case.probe
    divergence = Divergence(threshold=1e-4)
    divergence.remember(ONE, learner, probe)
    perturb(learner.module.get_submodule("value"), 0, 5.0)
    assert not divergence.update(learner).detected


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_must_be_above_0(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold is {threshold}; it must be above 0"):
        Divergence(threshold)


def test_an_update_changes_neither_network_nor_global_generators(case: Case) -> None:
    learner = case.learner
    divergence = case.divergence
    perturb(learner.module, 0, 0.2)
    before = weights(learner.module)
    states = random_states()
    training = learner.module.training
    grads = [p.requires_grad for p in learner.module.parameters()]
    divergence.update(learner)
    assert same(weights(learner.module), before)
    assert random_states() == states
    assert learner.module.training is training
    assert [p.requires_grad for p in learner.module.parameters()] == grads
    assert divergence.update(learner).values == divergence.values


class Normed(nn.Module):
    """A linear layer, batch norm and a head, with the leading axes of a learner."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 10)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> tuple[Output, Tensor]:
        x = self.body(obs["image"].flatten(0, 1) / 16)
        return Output(self.head(x).unflatten(0, start.shape)), state


def test_statistics_of_norms_are_no_weights_but_act_on_the_outputs() -> None:
    learner = SupervisedLearner(Normed(), stream())
    probe = learner.rollout(stream(), [0], 4, seed=0)
    divergence = Divergence()
    divergence.remember(ONE, learner, probe)
    learner.outputs(learner.rollout(stream(), [1], 4, seed=0))  # a pass in training mode
    values = divergence.update(learner).values
    assert values["weights/one/body"] == values["weights/one/head"] == 0.0
    assert values["kl/one/body"] == pytest.approx(values["kl/one/network"], rel=1e-5)
    assert values["kl/one/network"] > 1e-4


@pytest.mark.parametrize("name", ["hat", "packnet", "progressive"])
def test_a_strategy_that_forgets_nothing_has_no_divergence(name: str) -> None:
    """The network's present mask or column is another task's."""
    world: dict[str, Any] = {"label_space": "within_task", "task_cue": True}
    divergence = Divergence()
    run = Run(
        stream_learner(name),
        Plan([[0], [1], [2]], [64] * 3, 10**9),
        stream(16, split="test", **world),
        [active(name)],
        [divergence],
    )
    run.go()
    for task in run.evaluation.tasks[:2]:
        assert divergence.values[f"kl/{task.name}/network"] < 1e-6
        for module in ("encoder", "head"):
            assert divergence.values.get(f"kl/{task.name}/{module}", 0.0) < 1e-6


def test_icarls_divergence_is_that_of_its_classifier_and_finite() -> None:
    """Classes without exemplars, which it never predicts, are no infinity."""
    divergence, icarl = Divergence(), active("icarl")
    learner = stream_learner("icarl")
    run = Run(
        learner, Plan([[0], [1]], [64] * 2, 10**9), stream(16, split="test"), [icarl], [divergence]
    )
    run.go()
    first = run.evaluation.tasks[0]
    anchor = divergence.anchors[first.name]
    with viewed(learner, [icarl], first), torch.no_grad():
        p, q = (torch.softmax(z, -1) for z in (anchor.outputs, learner.outputs(anchor.probe)))
    expected = torch.where(p > 0, p * (p.log() - q.log()), 0).sum(-1).mean()
    assert divergence.values[f"kl/{first.name}/network"] == pytest.approx(float(expected), rel=1e-4)
    assert all(math.isfinite(value) for value in divergence.values.values())


def test_statistics_of_observations_are_no_weights_but_change_outputs() -> None:
    network = partial(agent, normalize="running")
    learner = SB3Learner(plant(), network, PPO, PPO_PARAMETERS, device="cpu")
    probe = learner.rollout(plant(6), [0], 8, seed=0)
    divergence = Divergence()
    divergence.remember(ONE, learner, probe)
    learner._see(probe)
    values = divergence.update(learner).values
    assert values["weights/one/encoders"] == 0.0
    assert values["kl/one/encoders"] > 1e-6
