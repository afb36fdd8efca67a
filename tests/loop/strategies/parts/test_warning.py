"""Weight regularisation warns where tasks bring new classes and the task ID is unavailable."""

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

WEIGHT_REGULARISERS = ["ewc", "ewc_kfac", "l2", "si", "mas", "rwalk"]


def warnings_of(
    learner: SupervisedLearner, strategy: Strategy, tasks: Sequence[int], world: dict[str, Any]
) -> list[list[str]]:
    """The warnings at the end of each task."""
    messages = []
    for task in tasks:
        batch = learner.rollout(stream(**world), [task], 3, seed=task)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.end_task(learner.world.tasks[task], [batch], learner)
        messages.append([str(w.message) for w in caught])
    return messages


def stream_case(names: Sequence[str], **world: Any) -> tuple[SupervisedLearner, list[Strategy]]:
    learner = SupervisedLearner(
        mlp(2 if world.get("label_space") == "within_task" else 10), stream(**world)
    )
    strategies = [STRATEGIES[name]() for name in names]
    learner.attach(strategies)
    return learner, strategies


@pytest.mark.parametrize("name", WEIGHT_REGULARISERS)
def test_new_classes_without_a_task_id_raise_one_warning(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    first, second, *later = warnings_of(learner, strategy, [0, 1, 2, 3], {})
    assert first == []
    assert len(second) == 1
    assert second[0].startswith(
        f"{name} does not help where each task brings new classes and the task ID is unavailable"
    )
    assert "pushes down the logits of past ones" in second[0]
    assert later == [[], []]


@pytest.mark.parametrize("name", WEIGHT_REGULARISERS)
def test_the_warning_suggests_alternatives(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    batches = [learner.rollout(stream(), [task], 3, seed=0) for task in (0, 1)]
    strategy.end_task(learner.world.tasks[0], batches[:1], learner)
    with pytest.warns(
        UserWarning,
        match=f"^{name} does not help.*er_ace or derpp, or use one head per task",
    ):
        strategy.end_task(learner.world.tasks[1], batches[1:], learner)


@pytest.mark.parametrize("name", WEIGHT_REGULARISERS)
@pytest.mark.parametrize(
    "world",
    [{"label_space": "within_task"}, {"task_cue": True}],
    ids=["the same labels", "with the task ID"],
)
def test_there_is_no_warning_where_regularisation_can_help(
    name: str, world: dict[str, Any]
) -> None:
    learner, (strategy,) = stream_case([name], **world)
    assert warnings_of(learner, strategy, [0, 1, 2], world) == [[], [], []]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["before", "after"])
@pytest.mark.parametrize("beside", ["replay", "der", "er_ace", "icarl", "gdumb"])
@pytest.mark.parametrize("name", WEIGHT_REGULARISERS)
def test_there_is_no_warning_beside_replay_of_examples(
    name: str, beside: str, order: list[int]
) -> None:
    names = [name, beside]
    learner, strategies = stream_case([names[i] for i in order])
    assert warnings_of(learner, strategies[order.index(0)], [0, 1, 2], {}) == [[], [], []]


@pytest.mark.parametrize("beside", ["replay", "icarl"])
def test_an_inactive_replay_strategy_does_not_prevent_the_warning(beside: str) -> None:
    learner = SupervisedLearner(mlp(), stream())
    strategies = [STRATEGIES["ewc"](), STRATEGIES[beside](strength=0.0)]
    learner.attach(strategies)
    found = warnings_of(learner, strategies[0], [0, 1, 2], {})
    assert [len(messages) for messages in found] == [0, 1, 0]


@pytest.mark.parametrize("name", WEIGHT_REGULARISERS)
def test_one_label_of_any_past_task_prevents_the_warning(name: str) -> None:
    """After {0, 1}, {1, 2} and {0} have past labels; {3} and {4} do not, and the first warns."""
    learner = TaskAgnosticLearner(FlatNet(nn.Linear(4, 5), "x").double(), Categorical(5))
    strategy = STRATEGIES[name]()
    learner.attach([strategy])
    counts = []
    for labels in ([0, 1], [1, 2], [0], [3], [4]):
        x = vector_batch(6, 4, 5)
        batch = Batch(x.obs, x.start, torch.tensor(labels).repeat(6)[None, :6])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.end_task(Named(), [batch], learner)
        counts.append(len(caught))
    assert counts == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("name", WEIGHT_REGULARISERS)
def test_a_restored_strategy_does_not_warn_again(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    messages = []
    for task in range(3):
        messages += warnings_of(learner, strategy, [task], {})
        restored = STRATEGIES[name]()
        learner.attach([restored])
        restored.load_state_dict(strategy.state_dict(), learner)
        strategy = restored
    assert [len(s) for s in messages] == [0, 1, 0]


def test_replay_attached_later_prevents_the_warning() -> None:
    """The same strategy warns when it is attached alone."""
    learner, (strategy,) = stream_case(["si"])
    learner.attach([strategy, Replay()])
    assert warnings_of(learner, strategy, [0, 1], {}) == [[], []]
    learner.attach([strategy])
    assert [len(s) for s in warnings_of(learner, strategy, [0, 1], {})] == [0, 1]
