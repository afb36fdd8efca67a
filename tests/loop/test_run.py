"""A run: the order of its steps, evaluations, results, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import VectorWrapper
from loop_helpers import FlatNet, same, stream, weights
from run_helpers import FOREVER, KINDS, TaskRecorder, plan, run_with_strategies, setting
from torch import Tensor, nn

from everloop.contract import ACCURACY
from everloop.loop import (
    EWC,
    Callback,
    Plan,
    Run,
    SupervisedLearner,
    Training,
    scores,
)
from everloop.loop.evaluate import scaled


@KINDS
def test_evaluations_do_not_change_training_bit_for_bit(kind: str) -> None:
    often, never = run_with_strategies(kind, eval_every=1), run_with_strategies(kind)
    assert len(often[0].evaluations) > len(never[0].evaluations) == 3
    assert same(often[1], never[1])
    assert often[0].scores == never[0].scores


def test_evaluations_do_not_change_training_with_dropout() -> None:
    """An evaluation draws no dropout masks."""

    def final(eval_every: int) -> list[Tensor]:
        _, evaluation = setting("stream")
        torch.manual_seed(0)
        module = FlatNet(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))
        )
        learner = SupervisedLearner(module, stream(), Training(1e-2))
        Run(learner, plan(eval_every), evaluation, []).go()
        return weights(module)

    assert same(final(1), final(FOREVER))


@KINDS
def test_the_same_seed_gives_the_same_scores_bit_for_bit(kind: str) -> None:
    first, a = run_with_strategies(kind, 32)
    second, b = run_with_strategies(kind, 32)
    other, c = run_with_strategies(kind, 32, seed=1)
    assert first.before == second.before
    assert first.scores == second.scores != other.scores
    assert [e.scores for e in first.evaluations] == [e.scores for e in second.evaluations]
    assert same(a, b)
    assert not same(a, c)


@KINDS
def test_the_result_contains_the_score_matrix_and_all_evaluations(kind: str) -> None:
    learner, evaluation = setting(kind)
    before = scores(learner, evaluation, [], 5)
    result = Run(learner, plan(32), evaluation, []).go()
    assert result.tasks == [task.name for task in evaluation.tasks]
    assert result.phases == [[0], [1]]
    assert result.before == before
    assert len(result.scores) == 2
    assert result.scores[-1] == scores(learner, evaluation, [], 5)
    assert result.steps == learner.steps == 128
    first, *later = result.evaluations
    assert (first.step, first.phase, first.ends_phase, first.scores) == (0, None, False, before)
    assert [(e.step, e.phase, e.scores) for e in later if e.ends_phase] == [
        (64, 0, result.scores[0]),
        (128, 1, result.scores[1]),
    ]
    assert {32, 96} <= {e.step for e in later if not e.ends_phase}
    assert [e.phase for e in later] == sorted(e.phase for e in later if e.phase is not None)
    assert [e.scores for e in result.evaluations] == [
        scaled(evaluation, e.returns) for e in result.evaluations
    ]
    assert result.wall_seconds > 0


@pytest.mark.parametrize("flushed", [False, True])
def test_a_run_flushes_denormals_and_restores_the_setting(flushed: bool) -> None:
    """Denormals slow a CPU down, but other code in the process keeps its setting."""
    found = []

    class Denormals(Callback):
        def on_step(self, run: Run) -> None:
            found.append(float(torch.tensor([1e-40]) * 1))

    torch.set_flush_denormal(flushed)
    try:
        learner, evaluation = setting("stream")
        Run(learner, plan(), evaluation, [], [Denormals()]).go()
        assert found
        assert not any(found)
        assert (float(torch.tensor([1e-40]) * 1) == 0) is flushed
    finally:
        torch.set_flush_denormal(False)


@KINDS
def test_no_step_is_evaluated_twice(kind: str) -> None:
    learner, evaluation = setting(kind)
    steps = [e.step for e in Run(learner, plan(32), evaluation, []).go().evaluations]
    assert steps == sorted(set(steps))


@KINDS
def test_evaluations_within_a_phase_use_the_updated_network(kind: str) -> None:
    """The scores equal those of a phase that ends there."""

    def at_64(steps: int) -> list[float]:
        learner, evaluation = setting(kind)
        result = Run(learner, plan(64, phases=[[0]], steps=steps), evaluation).go()
        return next(now.scores for now in result.evaluations if now.step == 64)

    assert at_64(128) == at_64(64)


def recorded_tasks(phases: Sequence[Sequence[int]], kind: str = "stream") -> list[str]:
    learner, evaluation = setting(kind)
    entries: list[str] = []
    Run(
        learner,
        plan(phases=phases, steps=32),
        evaluation,
        [TaskRecorder("a", entries), TaskRecorder("b", entries)],
    ).go()
    return entries


def test_tasks_begin_and_end_in_order_for_every_strategy() -> None:
    expected = []
    # a task that is trained again begins and ends again
    for phase, name in enumerate(["2-3", "0-1", "2-3"]):
        for word, step in (("begins", 32 * phase), ("ends", 32 * phase + 32)):
            expected += [f"a {word} {name} at {step}", f"b {word} {name} at {step}"]
    assert recorded_tasks([[1], [0], [1]]) == expected


def test_tasks_of_one_phase_begin_and_end_together() -> None:
    entries = [entry for entry in recorded_tasks([[0, 1, 2]]) if entry.startswith("a")]
    assert [e.split()[1] for e in entries] == ["begins"] * 3 + ["ends"] * 3
    assert [e.split()[2] for e in entries] == ["0-1", "2-3", "4-5"] * 2


@KINDS
def test_a_task_ends_with_a_sample_of_its_examples(kind: str) -> None:
    learner, evaluation = setting(kind)
    strategy = TaskRecorder("a", [])
    Run(learner, plan(), evaluation, [strategy]).go()
    assert [task for task, _ in strategy.batches] == [0, 1]
    for task, batch in strategy.batches:
        assert batch.length * len(batch) == 64
        assert batch.task is not None
        assert set(batch.task.tolist()) == {task}
        assert (batch.target is not None) == (kind == "stream")


def test_a_new_run_replaces_the_strategies_of_the_learner() -> None:
    learner, evaluation = setting("stream")
    entries: list[str] = []
    Run(learner, plan(), evaluation, [TaskRecorder("old", entries)]).go()
    entries.clear()
    Run(learner, plan(), evaluation, [TaskRecorder("new", entries)]).go()
    assert {entry.split()[0] for entry in entries} == {"new"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": []}, r"schedule is \[\]; give at least one phase"),
        (
            {"phases": [[0], []]},
            r"schedule is \[\[0\], \[\]\]; give at least one phase of at least one task",
        ),
        ({"steps": [8]}, r"steps are \[8\]; give 1 or more for each of the 2 phases"),
        ({"steps": [8, 8, 8]}, r"steps are \[8, 8, 8\]"),
        ({"steps": [8, 0]}, r"steps are \[8, 0\]"),
        ({"eval_every": 0}, "eval_every is 0; it must be 1 or more"),
        ({"consolidation_examples": 0}, "consolidation_examples is 0; it must be 1 or more"),
    ],
    ids=str,
)
def test_invalid_plans_are_refused_with_the_value(settings: dict[str, Any], message: str) -> None:
    valid = {"phases": [[0], [1]], "steps": [8, 8], "eval_every": 8}
    with pytest.raises(ValueError, match=message):
        Plan(**valid | settings)


def test_an_unknown_task_is_refused() -> None:
    learner, evaluation = setting("stream")
    with pytest.raises(ValueError, match="unknown task 9"):
        Run(learner, plan(phases=[[9]]), evaluation, []).go()


def test_scores_rise_with_learning_and_fall_with_forgetting() -> None:
    """On class-incremental digits, the network learns the last task and forgets the first."""
    learner, evaluation = setting("stream")
    result = Run(learner, plan(steps=1200), evaluation, []).go()
    assert result.metric == ACCURACY
    assert result.scores[0][0] > 90
    assert result.scores[1][1] > 80
    assert result.scores[1][2:] == [0.0, 0.0, 0.0]
    assert result.forgetting is not None
    assert 50 < result.forgetting <= 100


@pytest.mark.parametrize("kind", ["stream", "ppo"])
def test_the_gradient_norm_is_that_of_the_latest_step(kind: str) -> None:
    """It is the norm that the optimizer got, after strategies and clipping."""
    learner, evaluation = setting(kind)
    norms: list[float] = []

    def record_norm(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        squares = [
            float((p.grad.double() ** 2).sum())
            for p in learner.module.parameters()
            if p.grad is not None
        ]
        norms.append(sum(squares) ** 0.5)

    learned = Run(learner, plan(phases=[[0]]), evaluation, [EWC(50.0)]).go()
    learner.optimizer.register_step_post_hook(record_norm)
    learner.learn([1], 64)
    assert learned.steps == 64
    assert learner.gradient_norm() == pytest.approx(norms[-1], rel=1e-5)


def test_an_environment_without_the_world_interface_is_refused() -> None:
    learner, evaluation = setting("stream")
    for world, line in (
        (
            gym.make_vec("CartPole-v1"),
            "CartPole.* is not a world: it has no tasks, refer",
        ),
        (VectorWrapper(evaluation), "^VectorWrapper hides that it wraps a world; use everloop"),
    ):
        with pytest.raises(ValueError, match=line):
            Run(learner, plan(), world)
