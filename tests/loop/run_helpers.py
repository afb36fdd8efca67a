"""Small runs and recorders of their events, shared by tests of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from loop_helpers import control_learner, mlp, plant, stream, weights
from torch import Tensor

from everloop.contract import Task
from everloop.loop import (
    EWC,
    Batch,
    Callback,
    Learner,
    Plan,
    Replay,
    Result,
    Run,
    Strategy,
    SupervisedLearner,
    Training,
)

KINDS = pytest.mark.parametrize("kind", ["stream", "ppo", "recurrent ppo"])
FOREVER = 10**9


def setting(kind: str, seed: int = 0) -> tuple[Learner, Any]:
    """A learner and a world for evaluation."""
    if kind == "stream":
        return (
            SupervisedLearner(mlp(seed=seed), stream(seed=seed), Training(1e-2)),
            stream(16, split="test"),
        )
    learner = control_learner(kind == "recurrent ppo", seed=seed)
    learner.model.set_random_seed(seed)
    return learner, plant(5)


def plan(
    eval_every: int = FOREVER, phases: Sequence[Sequence[int]] = ((0,), (1,)), steps: int = 64
) -> Plan:
    return Plan(phases, [steps] * len(phases), eval_every, seed=5)


def run_with_strategies(
    kind: str, eval_every: int = FOREVER, seed: int = 0
) -> tuple[Result, list[Tensor]]:
    learner, evaluation = setting(kind, seed)
    strategies = [EWC(50.0), Replay(capacity=50, batch_size=4)]
    return Run(learner, plan(eval_every), evaluation, strategies).go(), weights(learner.module)


class HookRecorder(Callback):
    """Records the calls of its hooks."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def on_run_begin(self, run: Run) -> None:
        assert run.result.scores == []
        assert [e.phase for e in run.result.evaluations] == [None]
        self.calls.append(f"{self.name} begin {sum(run.plan.steps)}")

    def on_phase_begin(self, run: Run) -> None:
        assert len(run.result.scores) == run.phase
        self.calls.append(f"{self.name} phase {run.phase}")

    def on_step(self, run: Run) -> None:
        self.calls.append(f"{self.name} step {run.steps}")

    def on_evaluation(self, run: Run) -> None:
        self.calls.append(f"{self.name} evaluation {run.result.evaluations[-1].step}")

    def on_phase_end(self, run: Run) -> None:
        assert len(run.result.scores) == run.phase + 1
        self.calls.append(f"{self.name} phase {run.phase} ended")

    def on_run_end(self, run: Run) -> None:
        self.calls.append(f"{self.name} end {run.result.steps}")


class LogRecorder(Callback):
    """Records the numbers whose names start with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.scalars = prefix, list[tuple[int, dict[str, float]]]()

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        if all(name.startswith(self.prefix) for name in scalars):
            self.scalars.append((run.steps, scalars))


class TaskRecorder(Strategy):
    """Records the beginnings and ends of tasks, and the examples at the ends."""

    def __init__(self, name: str, entries: list[str]) -> None:
        self.name, self.entries = name, entries
        self.batches: list[tuple[int, Batch]] = []

    def begin_task(self, task: Task, learner: Learner) -> None:
        self.entries.append(f"{self.name} begins {task.name} at {learner.steps}")

    def end_task(self, task: Task, batches: Sequence[Batch], learner: Learner) -> None:
        self.entries.append(f"{self.name} ends {task.name} at {learner.steps}")
        self.batches += [(task.id, batch) for batch in batches]
