"""Combinations of strategies with each other and with options of training."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from architecture_helpers import examples, learn_task, task_aware_learner, view_outputs
from contract_helpers import (
    NETWORKS,
    STREAM,
    TASK_AGNOSTIC_ONLY,
    TASK_AWARE_ONLY,
    active,
    world_of,
)
from loop_helpers import learn_tasks, same, stream, weights

from everloop.agents import MLP, Classifier, GrowingMLP, ProgressiveMLP
from everloop.loop import (
    EWC,
    HAT,
    Growth,
    LoRA,
    PackNet,
    Progressive,
    Replay,
    SupervisedLearner,
    Training,
)


def pair_learner(names: tuple[str, str]) -> SupervisedLearner:
    """A small network that both strategies accept, task-aware if one of them needs the task ID."""
    cue = bool(TASK_AWARE_ONLY & set(names))
    torch.manual_seed(0)
    world = stream(label_space="within_task", task_cue=True) if cue else stream()
    backbone = next((NETWORKS[name] for name in names if name in NETWORKS), MLP)(
        (8, 8, 1), (12, 12)
    )
    return SupervisedLearner(Classifier(backbone, 2 if cue else 10, tasks=5 if cue else 1), world)


PARTNERS = ["ewc", "replay", "packnet", "lora"]
"""One penalty, one that replays, one that divides the weights and one that adds some."""


@pytest.mark.parametrize(
    "seconds", [PARTNERS, pytest.param(STREAM, marks=pytest.mark.slow)], ids=["some", "all"]
)
@pytest.mark.parametrize("first", STREAM)
def test_any_two_strategies_train_together_or_are_refused_at_once(
    first: str, seconds: list[str]
) -> None:
    for second in seconds:
        names = first, second
        if (
            first == second
            or set(names) >= set(NETWORKS)
            or (TASK_AWARE_ONLY & set(names) and TASK_AGNOSTIC_ONLY & set(names))
        ):
            continue
        learner = pair_learner(names)
        strategies = [active(name) for name in names]
        initial = weights(learner.module)
        refusal = ""
        try:
            learner.attach(strategies)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert len(refusal.splitlines()) == 1, names
            assert learner.strategies == [], names
            assert same(weights(learner.module), initial), names
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # strategies warn that they cannot help here
            try:
                learn_tasks(learner, [0, 1], 32, world_of(learner))
            except Exception as error:
                raise AssertionError(f"{first} and {second}") from error
        assert all(bool(w.isfinite().all()) for w in weights(learner.module)), names


@pytest.mark.parametrize("kind", [PackNet, HAT])
def test_packnet_and_hat_must_come_first(kind: Any) -> None:
    learner = task_aware_learner(MLP((8, 8, 1), (12,)))
    with pytest.raises(
        ValueError,
        match=f"^{kind.name} must come first in the list of strategies; it is number 2$",
    ):
        learner.attach([Replay(), kind()])
    learner.attach([kind(), Replay()])


@pytest.mark.parametrize("kind", [PackNet, lambda: HAT(period=4, rate=0.5)])
def test_a_proximal_step_moves_no_weights_of_past_tasks(kind: Any) -> None:
    """It comes after the optimizer's step, and weights are restored after both."""
    learner = task_aware_learner(MLP((8, 8, 1), (12,)))
    strategy, ewc = kind(), EWC(1e3, proximal=True)
    learner.attach([strategy, ewc])
    learn_task(learner, 0)
    batch = examples(learner, 0)
    then = view_outputs(learner, strategy, 0, batch)
    for task in (1, 2):
        learn_task(learner, task)
    assert torch.equal(view_outputs(learner, strategy, 0, batch), then)


def test_only_one_strategy_may_add_weights() -> None:
    learner = task_aware_learner(ProgressiveMLP((8, 8, 1), (12,)))
    with pytest.raises(
        ValueError,
        match=r"^progressive adds weights to the network and lora adds weights to the network, ",
    ):
        learner.attach([Progressive(), LoRA()])
    assert learner.strategies == []


GROWING: dict[str, tuple[Any, Any]] = {
    "lora": (lambda: LoRA(rank=2), MLP),
    "progressive": (Progressive, ProgressiveMLP),
    "growth": (lambda: Growth(units=3, threshold=0.0, patience=2), GrowingMLP),
}


@pytest.mark.parametrize("rate", ["cosine", "plateau"])
@pytest.mark.parametrize("name", GROWING)
def test_added_weights_follow_the_rate_schedule(name: str, rate: Any) -> None:
    strategy, backbone = GROWING[name][0](), GROWING[name][1]((8, 8, 1), (12,))
    learner = SupervisedLearner(
        Classifier(backbone, 2, tasks=5),
        stream(label_space="within_task", task_cue=True),
        Training(1e-2, rate=rate),
    )
    learner.attach([strategy])
    before = len(list(learner.module.parameters()))
    for task in range(2):
        learn_task(learner, task)
    known = {p for group in learner.optimizer.param_groups for p in group["params"]}
    added = list(learner.module.parameters())
    assert len(added) > before
    assert len(learner.optimizer.param_groups) == 1
    assert all(p in known for p in added)
