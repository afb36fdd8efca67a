"""Runs logged to TensorBoard, and functions that read their events."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from loop_helpers import mlp, run_of, stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from everloop.loop import (
    Callback,
    Divergence,
    Plan,
    Result,
    Run,
    SupervisedLearner,
    TensorBoardLogger,
    Training,
)
from everloop.loop.callbacks import tensorboard
from everloop.loop.callbacks.curves import average_forgetting

SPECIAL_NAMES = ["C++", "plant-1", "plant-10", "a(b", "x/y"]
EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


class NumberRecorder(Callback):
    """Sets the names of the run, and records its numbers at each evaluation."""

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


class Case(NamedTuple):
    """A logged run: its result, the numbers it had, and the events that were written."""

    result: Result
    numbers: NumberRecorder
    events: EventAccumulator


def logged_run(folder: Path) -> Case:
    """Train three of five tasks of digits, with four evaluations each and every figure."""
    numbers = NumberRecorder()
    learner = SupervisedLearner(mlp(), stream(), Training(1e-2))
    plan = Plan([[0], [1], [2]], [80] * 3, eval_every=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "DRAWING", math.inf)
        logger = TensorBoardLogger(folder, {"epochs": 1}, "everloop run digits")
        callbacks = [Divergence(), numbers, logger]
        result = Run(learner, plan, stream(16, split="test"), [], callbacks).go()
    return Case(result, numbers, read(folder))


def read(folder: Path) -> EventAccumulator:
    """The events in a folder."""
    events = EventAccumulator(str(folder), EVERYTHING)
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    """The points (step, value) of a tag."""
    return [(event.step, event.value) for event in events.Scalars(tag)]


def near(points: list[tuple[int, float | None]]) -> list[tuple[int, Any]]:
    """The points with a value, in the single precision of TensorBoard."""
    known = [(step, value) for step, value in points if value is not None]
    return [(step, pytest.approx(value, rel=1e-6, abs=1e-6)) for step, value in known]


def replay(result: Result, logger: TensorBoardLogger) -> None:
    """Call the hooks of `logger` for all evaluations in order, as a run would."""
    evaluations = result.evaluations
    result.evaluations = evaluations[:1]
    result.steps = 0
    logger.on_run_begin(run_of(result))
    for phase, now in enumerate(evaluations[1:]):
        logger.on_phase_begin(run_of(result, phase=phase))
        result.evaluations.append(now)
        result.steps = now.step
        logger.on_evaluation(run_of(result, now.step))
    logger.on_run_end(run_of(result))
