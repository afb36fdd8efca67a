"""A phase ends when its score no longer rises, and may keep the best of what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from loop_helpers import same, weights
from run_state_helpers import SETTINGS, ewc_and_replay, final_state, flat

from everloop.loop import Callback, EarlyStopping, Evaluation, Plan, Run
from everloop.loop.state import pack

STEPS = [80, 80, 48]


class Scripted(Run):
    """A run whose scores within a phase are given: those of the other tasks are a hundred more."""

    script: Sequence[float] = ()

    def _measure(self, ends_phase: bool) -> Evaluation:
        now = super()._measure(ends_phase)
        within = [e for e in self.result.evaluations if e.phase == self.phase and e.step]
        if ends_phase or now.phase is None or len(within) >= len(self.script):
            return now
        scores = [100.0 + self.script[len(within)]] * len(now.scores)
        for task in self.plan.phases[self.phase]:
            scores[task] -= 100.0
        return Evaluation(now.step, now.phase, ends_phase, scores, now.returns)


def run_of(kind: str, callbacks: Sequence[Callback], every: int = 16, seed: int = 0) -> Scripted:
    learner, evaluation = SETTINGS[kind](seed)
    learner.seed(seed)
    plan = Plan([[0], [1], [0]], STEPS, eval_every=every, seed=5)
    return Scripted(learner, plan, evaluation, ewc_and_replay(seed), callbacks)


@pytest.mark.parametrize(
    ("patience", "min_delta", "script", "ends"),
    [
        (1, 0.0, [1.0, 2.0, 2.0, 3.0], 48),  # an equal score is no rise
        (1, 0.0, [1.0, 0.5], 32),
        (2, 0.0, [1.0, 0.5, 0.9, 5.0], 48),  # compared with the best, not with the last
        (2, 0.0, [1.0, 0.5, 1.1, 1.0], 80),  # a rise starts the count again
        (1, 0.5, [1.0, 1.5, 9.0], 32),  # a rise of exactly min_delta is none
        (1, 0.5, [1.0, 1.6, 2.2, 2.8], 80),
        (2, 0.5, [1.0, 1.4, 1.6, 1.0], 80),  # compared with the best so far, which stays 1.0
    ],
)
def test_a_phase_ends_after_that_many_evaluations_without_a_rise(
    patience: int, min_delta: float, script: list[float], ends: int
) -> None:
    run = run_of("plain", [EarlyStopping(patience, min_delta)])
    run.script = script
    run.begin()
    while run.phase == 0:
        run.advance()
    assert run.steps == ends
    last = run.result.evaluations[-1]
    assert (last.ends_phase, last.step) == (True, ends)


def test_every_phase_counts_anew() -> None:
    run = run_of("plain", [EarlyStopping(1)])
    run.script = [1.0, 0.0]
    result = run.go()
    assert [row.step for row in result.rows] == [32, 64, 96]
    assert result.complete


class Best(Callback):
    """Keeps what was learned at an evaluation, and when the phase was trained."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0
        self.kept: Any = None
        self.trained: Any = None

    def on_phase_begin(self, run: Run) -> None:
        self.seen = 0

    def on_evaluation(self, run: Run) -> None:
        self.seen += 1
        if run.phase == 0 and self.seen == self.number:
            self.kept = pack(run.learner.learned()), weights(run.learner.module)

    def on_phase_trained(self, run: Run) -> None:
        if run.phase == 0:
            self.trained = pack(run.learner.learned()), weights(run.learner.module)


@pytest.mark.parametrize("kind", ["cosine", "ppo", "sac"])
@pytest.mark.parametrize(
    ("patience", "script", "best"),
    [(3, [1.0, 3.0, 2.0, 2.5], 2), (2, [3.0, 1.0, 2.0], 1)],
    ids=["phase of full length", "ended early"],
)
def test_the_best_of_what_was_learned_comes_back_before_consolidation(
    kind: str, patience: int, script: list[float], best: int
) -> None:
    watch = Best(best)
    every = 32 if kind == "ppo" else 16
    run = run_of(kind, [stop := EarlyStopping(patience, restore_best=True), watch], every)
    run.script = script
    run.begin()
    while run.phase == 0:
        run.advance()
    assert flat(watch.trained[0]) == flat(watch.kept[0])  # strategies and optimizer too
    assert same(watch.trained[1], watch.kept[1])
    assert stop.snapshot is None
    assert run.learner.tally.updates > 0


def test_without_restore_best_the_last_weights_stay() -> None:
    watch = Best(1)
    run = run_of("plain", [EarlyStopping(1), watch])
    run.script = [1.0, 0.0]
    run.go()
    assert not same(watch.trained[1], watch.kept[1])


@pytest.mark.parametrize("kind", ["plain", "ppo", "sac"])
@pytest.mark.parametrize("restore_best", [False, True])
@pytest.mark.parametrize("at", [16, 40, 64])
def test_a_resumed_run_stops_and_restores_as_the_uninterrupted_one(
    kind: str, restore_best: bool, at: int
) -> None:
    every = 32 if kind == "ppo" else 16

    def new(seed: int) -> Run:
        run = run_of(kind, [EarlyStopping(1, restore_best=restore_best)], every, seed)
        run.script = [3.0, 4.0, 2.0]
        return run

    first = new(0)
    first.begin()
    while first.steps < at:
        first.advance()
    state = first.state_dict()
    first.go()
    second = new(3)
    second.load_state_dict(state)
    second.go()
    assert final_state(second) == final_state(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": 0}, "early_stopping is 0; it must be 1 or more evaluations"),
        ({"patience": 1, "min_delta": -0.1}, "min_delta is -0.1; it must be finite and 0 or more"),
        ({"patience": 1, "min_delta": float("nan")}, "min_delta is nan"),
    ],
)
def test_a_value_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**arguments)


@pytest.mark.parametrize(
    ("kind", "every", "within"),
    [("plain", 80, 0), ("plain", 79, 0), ("plain", 72, 1), ("plain", 16, 4), ("ppo", 32, 2)],
)
def test_the_number_of_evaluations_is_known_before_training(
    kind: str, every: int, within: int
) -> None:
    run = run_of(kind, [], every)
    run.begin()
    while run.phase == 0:
        run.advance()
    assert len([e for e in run.result.evaluations if e.phase == 0]) == within + 1
    message = "no evaluation before its end" if not within else f"has only {within} evaluation"
    with pytest.raises(ValueError, match=message):
        EarlyStopping(max(within, 1)).check(run.plan, run.learner)
    if within > 1:
        EarlyStopping(within - 1).check(run.plan, run.learner)
    if within:
        EarlyStopping(within, restore_best=True).check(run.plan, run.learner)
