"""Divergence of the network from its state at the end of a task."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from loop_helpers import (
    PPO_PARAMETERS,
    agent,
    control_learner,
    perturb,
    plant,
    random_states,
    same,
    weights,
)
from stable_baselines3 import PPO

from everloop.loop import Batch, Divergence, Gaussian
from everloop.loop.sb3.on_policy import SB3Learner

MODULES = ["encoders", "attention", "memory", "head", "value"]


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
    divergence.remember("one", learner, probe)
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
    divergence.remember("two", learner, probe)
    values = dict(divergence.update(learner).values)
    assert values["kl/two/network"] == pytest.approx(0.0, abs=1e-6)
    assert values["kl/one/network"] > 1e-4
    divergence.remember("one", learner, probe)
    assert divergence.update(learner).values["kl/one/network"] == pytest.approx(0.0, abs=1e-6)


def test_detected_is_true_if_any_task_is_above_the_threshold(case: Case) -> None:
    learner = case.learner
    probe = case.probe
    divergence = Divergence()
    divergence.remember("one", learner, probe)
    perturb(learner.module, 0, 0.2)
    divergence.remember("two", learner, probe)
    distance = divergence.update(learner).values["kl/one/network"]
    for threshold, expected in ((distance * 0.9, True), (distance * 1.1, False)):
        divergence.threshold = threshold
        assert divergence.update(learner).detected is expected


def test_drift_of_weights_without_effect_is_not_detected(case: Case) -> None:
    learner = case.learner
    probe = case.probe
    divergence = Divergence(threshold=1e-4)
    divergence.remember("one", learner, probe)
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


def test_statistics_of_observations_are_no_weights_but_change_outputs() -> None:
    network = partial(agent, normalize="running")
    learner = SB3Learner(plant(), network, PPO, PPO_PARAMETERS, device="cpu")
    probe = learner.rollout(plant(6), [0], 8, seed=0)
    divergence = Divergence()
    divergence.remember("one", learner, probe)
    learner._see(probe)
    values = divergence.update(learner).values
    assert values["weights/one/encoders"] == 0.0
    assert values["kl/one/encoders"] > 1e-6
