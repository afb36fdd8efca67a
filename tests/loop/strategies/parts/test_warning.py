"""New classes, and nobody tells the task: who holds weights says that it cannot help."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from loop_helpers import (
    FlatNet,
    mlp,
    stream,
    vector_batch,
)
from strategy_helpers import Named, TaskAgnosticLearner
from torch import nn

from everloop.loop import STRATEGIES, Batch, Categorical, Replay, Strategy, SupervisedLearner

HOLDS_WEIGHTS = ["ewc", "ewc_kfac", "si", "mas", "rwalk"]


def warnings_of(
    learner: SupervisedLearner, strategy: Strategy, tasks: Sequence[int], world: dict[str, Any]
) -> list[list[str]]:
    """What is said at the end of each task."""
    said = []
    for task in tasks:
        batch = learner.rollout(stream(**world), [task], 3, seed=task)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.end_task(learner.world.tasks[task], [batch], learner)
        said.append([str(w.message) for w in caught])
    return said


def stream_case(names: Sequence[str], **world: Any) -> tuple[SupervisedLearner, list[Strategy]]:
    learner = SupervisedLearner(
        mlp(2 if world.get("label_space") == "within_task" else 10), stream(**world)
    )
    strategies = [STRATEGIES[name]() for name in names]
    learner.attach(strategies)
    return learner, strategies


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_new_classes_without_a_cue_are_warned_of_once_with_the_reason(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    first, second, *later = warnings_of(learner, strategy, [0, 1, 2, 3], {})
    assert first == []
    assert len(second) == 1
    assert second[0].startswith(
        f"{name} does not help where each task brings new classes and the task ID is unavailable"
    )
    assert "pushes down the logits of past ones" in second[0]
    assert later == [[], []]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_it_is_a_warning_to_whoever_calls(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    batches = [learner.rollout(stream(), [task], 3, seed=0) for task in (0, 1)]
    strategy.end_task(learner.world.tasks[0], batches[:1], learner)
    with pytest.warns(
        UserWarning,
        match=f"^{name} does not help.*er_ace or derpp, or use one head per task",
    ):
        strategy.end_task(learner.world.tasks[1], batches[1:], learner)


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
@pytest.mark.parametrize(
    "world",
    [{"label_space": "within_task"}, {"task_cue": True}],
    ids=["the same labels", "the task is told"],
)
def test_nobody_is_warned_where_weights_are_worth_holding(name: str, world: dict[str, Any]) -> None:
    learner, (strategy,) = stream_case([name], **world)
    assert warnings_of(learner, strategy, [0, 1, 2], world) == [[], [], []]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["before", "after"])
@pytest.mark.parametrize("beside", ["replay", "der", "er_ace", "icarl", "gdumb"])
@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_nobody_is_warned_beside_stored_examples(name: str, beside: str, order: list[int]) -> None:
    names = [name, beside]
    learner, strategies = stream_case([names[i] for i in order])
    assert warnings_of(learner, strategies[order.index(0)], [0, 1, 2], {}) == [[], [], []]


@pytest.mark.parametrize("beside", ["replay", "icarl"])
def test_examples_that_are_not_used_are_no_reason_to_be_silent(beside: str) -> None:
    learner = SupervisedLearner(mlp(), stream())
    strategies = [STRATEGIES["ewc"](), STRATEGIES[beside](strength=0.0)]
    learner.attach(strategies)
    assert [len(said) for said in warnings_of(learner, strategies[0], [0, 1, 2], {})] == [0, 1, 0]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_one_label_in_common_is_enough_and_all_past_labels_count(name: str) -> None:
    """{0, 1}, {1, 2}, {0}: each has a label that came before; {3} has none."""
    learner = TaskAgnosticLearner(FlatNet(nn.Linear(4, 5), "x").double(), Categorical(5))
    strategy = STRATEGIES[name]()
    learner.attach([strategy])
    said = []
    for labels in ([0, 1], [1, 2], [0], [3], [4]):
        x = vector_batch(6, 4, 5)
        batch = Batch(x.obs, x.start, torch.tensor(labels).repeat(6)[None, :6])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.end_task(Named(), [batch], learner)
        said.append(len(caught))
    assert said == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_a_restored_strategy_remembers_labels_and_that_it_has_warned(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    said = []
    for task in range(3):
        said += warnings_of(learner, strategy, [task], {})
        restored = STRATEGIES[name]()
        learner.attach([restored])
        restored.load_state_dict(strategy.state_dict(), learner)
        strategy = restored
    assert [len(s) for s in said] == [0, 1, 0]


def test_stored_examples_are_looked_for_among_all_strategies_of_the_learner() -> None:
    """Not of its own list alone: the same strategy warns when nothing else is attached."""
    learner, (strategy,) = stream_case(["si"])
    learner.attach([strategy, Replay()])
    assert warnings_of(learner, strategy, [0, 1], {}) == [[], []]
    learner.attach([strategy])
    assert [len(s) for s in warnings_of(learner, strategy, [0, 1], {})] == [0, 1]
