"""Runs that are logged to TensorBoard, and how to read their events back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from loop_helpers import mlp, run_of, stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from everloop.contract import ACCURACY, Metric
from everloop.loop import (
    Callback,
    Divergence,
    Evaluation,
    Plan,
    Result,
    Run,
    SupervisedLearner,
    TensorBoardLogger,
    Training,
)
from everloop.loop.callbacks import tensorboard
from everloop.loop.callbacks.curves import average_forgetting

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


class Keep(Callback):
    """Names the run, and records its numbers at each evaluation."""

    def __init__(self) -> None:
        self.divergences: list[dict[str, float]] = []
        self.logged: dict[str, float] = {}
        self.forgetting: list[list[float | None]] = []
        self.averages: list[tuple[float | None, float | None]] = []
        self.measures: list[dict[str, float | None]] = []

    def on_run_begin(self, run: Run) -> None:
        run.result.scenario = "digits"
        run.result.strategies = ["ewc", "replay"]
        run.result.seed = 3

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        self.logged = scalars

    def on_evaluation(self, run: Run) -> None:
        result = run.result
        self.divergences.append(self.logged)
        self.logged = {}
        self.forgetting.append(result.forgetting_now())
        self.averages.append((result.average_now(), average_forgetting(result)))
        if result.evaluations[-1].ends_phase:
            self.measures.append(result.measures())


Case = tuple[Result, Keep, EventAccumulator]


def logged_run(folder: Path) -> Case:
    """Three of five tasks of digits, evaluated four times each, with every figure drawn."""
    keep = Keep()
    learner = SupervisedLearner(mlp(), stream(), Training(1e-2))
    plan = Plan([[0], [1], [2]], [80] * 3, eval_every=24, consolidation_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "DRAWING", math.inf)
        logger = TensorBoardLogger(folder, {"epochs": 1}, "everloop run digits")
        callbacks = [Divergence(), keep, logger]
        result = Run(learner, plan, stream(16, split="test"), stream(), [], callbacks).go()
    return result, keep, read(folder)


def read(folder: Path) -> EventAccumulator:
    """The events in a folder."""
    events = EventAccumulator(str(folder), EVERYTHING)
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    """The points (step, value) of a tag."""
    return [(event.step, event.value) for event in events.Scalars(tag)]


def near(points: list[tuple[int, float | None]]) -> list[tuple[int, Any]]:
    """The known points, in the single precision of TensorBoard."""
    known = [(step, value) for step, value in points if value is not None]
    return [(step, pytest.approx(value, rel=1e-6, abs=1e-6)) for step, value in known]


def made(
    names: list[str],
    scores: list[list[float]],
    phases: list[list[int]] | None = None,
    metric: Metric = ACCURACY,
) -> Result:
    """A result with one evaluation before training, and one at the end of each of its phases."""
    result = Result(names, phases or [[j] for j in range(len(names))], metric, scenario="made")
    for i, row in enumerate(scores):
        phase = i - 1 if i else None
        result.evaluations.append(Evaluation(10 * i, phase, phase is not None, row, row))
    return result


def replay(result: Result, logger: TensorBoardLogger) -> None:
    """Call the hooks of `logger` for all evaluations in order, as a run would."""
    everything = result.evaluations
    result.evaluations = result.evaluations[:1]
    result.steps = 0
    logger.on_run_begin(run_of(result))
    for phase, now in enumerate(everything[1:]):
        logger.on_phase_begin(run_of(result, phase=phase))
        result.evaluations.append(now)
        result.steps = now.step
        logger.on_evaluation(run_of(result, now.step))
    logger.on_run_end(run_of(result))
