"""Callbacks of a run: the order of their hooks, and how they control the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from run_helpers import FOREVER, HookRecorder, LogRecorder, TaskRecorder, plan, setting
from torch import Tensor

from everloop.loop import (
    Batch,
    Callback,
    Divergence,
    Learner,
    NotFiniteError,
    Plan,
    Run,
    Strategy,
)


def test_all_hooks_are_called_in_order() -> None:
    learner, evaluation = setting("stream")
    calls: list[str] = []
    a, b = HookRecorder("a", calls), HookRecorder("b", calls)
    Run(learner, plan(16, steps=24), evaluation, [], [a, b]).go()
    calls_of_a = [word.removeprefix("a ") for word in calls if word.startswith("a")]
    first = [
        "phase 0",
        "step 8",
        "step 16",
        "evaluation 16",
        "step 24",
        "evaluation 24",
        "phase 0 ended",
    ]
    second = [
        "phase 1",
        "step 32",
        "step 40",
        "evaluation 40",
        "step 48",
        "evaluation 48",
        "phase 1 ended",
    ]
    assert calls_of_a == ["begin 48", *first, *second, "end 48"]
    assert calls[0::2] == [f"a {word}" for word in calls_of_a]
    assert calls[1::2] == [f"b {word}" for word in calls_of_a]


def test_divergence_is_logged_at_evaluations_after_the_first_task() -> None:
    learner, evaluation = setting("stream")
    recorder = LogRecorder("divergence/")
    Run(learner, plan(16, steps=24), evaluation, [], [recorder, Divergence()]).go()
    assert [(step, {name.split("/")[2] for name in d}) for step, d in recorder.scalars] == [
        (24, {"0-1"}),
        (40, {"0-1"}),
        (48, {"0-1", "2-3"}),
    ]
    assert recorder.scalars[0][1]["divergence/kl/0-1/network"] == pytest.approx(0.0, abs=1e-9)
    assert recorder.scalars[1][1]["divergence/kl/0-1/network"] > 1e-6


def test_a_short_task_logs_its_loss_at_its_end() -> None:
    learner, evaluation = setting("stream")
    recorder = LogRecorder("train/")
    Run(learner, plan(steps=24), evaluation, [], [recorder]).go()
    assert [step for step, _ in recorder.scalars] == [24, 48]


def test_a_callback_can_end_a_phase() -> None:
    class EndAt16(Callback):
        def on_step(self, run: Run) -> None:
            if run.phase == 0 and run.steps == 16:
                run.end_phase()

    learner, evaluation = setting("stream")
    entries: list[str] = []
    result = Run(
        learner,
        plan(steps=32),
        evaluation,
        [TaskRecorder("a", entries)],
        [EndAt16()],
    ).go()
    assert [(now.step, now.phase) for now in result.rows] == [(16, 0), (48, 1)]
    assert result.complete
    assert entries == [
        "a begins 0-1 at 0",
        "a ends 0-1 at 16",
        "a begins 2-3 at 16",
        "a ends 2-3 at 48",
    ]


def test_a_phase_ends_only_after_all_callbacks_were_called() -> None:
    class EndAtEvaluation(Callback):
        def on_evaluation(self, run: Run) -> None:
            if not run.result.evaluations[-1].ends_phase:
                run.end_phase()

    learner, evaluation = setting("stream")
    calls: list[str] = []
    Run(
        learner,
        plan(16, phases=[[0]], steps=32),
        evaluation,
        [],
        [EndAtEvaluation(), HookRecorder("a", calls)],
    ).go()
    assert calls[-4:] == ["a evaluation 16", "a evaluation 16", "a phase 0 ended", "a end 16"]


def test_a_callback_can_stop_the_run() -> None:
    class StopAbove50(Callback):
        def on_step(self, run: Run) -> None:
            if run.phase == 1 and run.evaluate().scores[1] > 50:
                run.stop()

    learner, evaluation = setting("stream")
    calls: list[str] = []
    result = Run(
        learner,
        plan(steps=400),
        evaluation,
        [],
        [StopAbove50(), HookRecorder("a", calls)],
    ).go()
    assert not result.complete
    assert len(result.rows) == 1
    assert result.evaluations[-1].scores[1] > 50 >= result.evaluations[-2].scores[1]
    assert calls[-1] == f"a end {result.steps}"
    assert 400 < learner.steps == result.steps < 800


def test_a_boundary_ends_and_begins_the_task_within_a_phase() -> None:
    class BoundaryAt16(Callback):
        def on_step(self, run: Run) -> None:
            if run.steps == 16:
                run.boundary()

    learner, evaluation = setting("stream")
    entries: list[str] = []
    result = Run(
        learner,
        plan(phases=[[0]], steps=32),
        evaluation,
        [TaskRecorder("a", entries)],
        [BoundaryAt16()],
    ).go()
    assert entries == [
        "a begins 0-1 at 0",
        "a ends 0-1 at 16",
        "a begins 0-1 at 16",
        "a ends 0-1 at 32",
    ]
    assert len(result.rows) == 1


@pytest.mark.parametrize("act", [Run.end_phase, Run.boundary])
def test_end_phase_and_boundary_are_refused_between_two_phases(act: Callable[[Run], None]) -> None:
    learner, evaluation = setting("stream")
    with pytest.raises(RuntimeError, match="no phase is in progress"):
        act(Run(learner, plan(), evaluation))


@pytest.mark.parametrize("shown", [16, 128, 136, 280])
def test_divergence_uses_at_most_128_examples_of_the_sample(
    shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[Batch] = []
    remember: Callable[..., None] = Divergence.remember

    def recording_remember(self: Divergence, task: str, learner: Learner, probe: Batch) -> None:
        probes.append(probe)
        remember(self, task, learner, probe)

    monkeypatch.setattr(Divergence, "remember", recording_remember)
    learner, evaluation = setting("stream")
    strategy = TaskRecorder("a", [])
    Run(learner, Plan([[0]], [shown], FOREVER), evaluation, [strategy], [Divergence()]).go()
    whole = Batch.pool([batch for _, batch in strategy.batches])
    assert len(whole) == shown
    assert len(probes[0]) == min(shown, 128)
    images = {image.numpy().tobytes() for image in whole.obs["image"][0]}
    assert {image.numpy().tobytes() for image in probes[0].obs["image"][0]} <= images


def test_all_hooks_before_an_error_are_called() -> None:
    learner, evaluation = setting("stream")
    calls: list[str] = []

    class FailingLoss(Strategy):
        def loss(self, fresh: Any, replayed: Any, learner: Learner) -> Tensor | None:
            if learner.steps < 24:
                return None
            raise NotFiniteError(f"the loss is nan at step {learner.steps}")

    with pytest.raises(NotFiniteError, match="at step 24"):
        Run(
            learner,
            plan(16),
            evaluation,
            [FailingLoss()],
            [HookRecorder("a", calls)],
        ).go()
    assert calls == [
        "a begin 128",
        "a phase 0",
        "a step 8",
        "a step 16",
        "a evaluation 16",
        "a step 24",
    ]


def test_every_callback_gets_the_logged_numbers() -> None:
    learner, evaluation = setting("stream")
    calls: list[tuple[str, int, list[str]]] = []

    class Scalars(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_log(self, run: Run, scalars: dict[str, float]) -> None:
            calls.append((self.name, run.steps, sorted(scalars)))

    Run(learner, plan(steps=160), evaluation, [], [Scalars("a"), Scalars("b")]).go()
    logged = ["train/gradient_norm", "train/learning_rate", "train/loss"]
    assert calls == [(name, step, logged) for step in (160, 320) for name in "ab"]
