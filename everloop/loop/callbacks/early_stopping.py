"""Ending a phase when its score no longer rises."""

from __future__ import annotations

import math
from typing import Any

from everloop.loop.learners.learner import Learner
from everloop.loop.plan import Plan
from everloop.loop.run import Callback, Run
from everloop.loop.state import pack


class EarlyStopping(Callback):
    """Ends a phase when the mean score of its tasks has stopped rising.

    The score is compared at the evaluations within the phase. The phase is then consolidated and
    evaluated as at its planned end. Place it after callbacks that measure the network.

    Args:
        patience: Number of consecutive evaluations, 1 or more, without a rise of the best score
            after which the phase ends.
        min_delta: The smallest rise that counts, 0 or more, in the unit of the score.
        restore_best: Restore what had been learned at the phase's best evaluation when its training
            ends, whether early or not: network, optimizer and strategies with their memories. A
            checkpoint then holds that too.

    Attributes:
        best: The best score of the phase so far; None before its first evaluation.

    Raises:
        ValueError: If a value is out of range.
    """

    state = ("best", "waited", "snapshot")

    def __init__(self, patience: int, min_delta: float = 0.0, restore_best: bool = False) -> None:
        if patience < 1:
            raise ValueError(f"early_stopping is {patience}; it must be 1 or more evaluations")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta is {min_delta}; it must be finite and 0 or more")
        self.patience, self.min_delta, self.restore_best = patience, min_delta, restore_best
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.waited = 0  # evaluations since the best one
        self.snapshot: dict[str, Any] | None = None

    def check(self, plan: Plan, learner: Learner) -> None:
        """Check that phases have enough evaluations before their ends.

        Raises:
            ValueError: If it would have no effect in any phase.
        """
        most = max(evaluations_within(plan, steps, learner.unit) for steps in plan.steps)
        if most == 0:
            raise ValueError(
                f"eval_every is {plan.eval_every}, but the longest phase has {max(plan.steps)} "
                "steps, so there is no evaluation before its end for early stopping; lower "
                "eval_every"
            )
        if most <= self.patience and not self.restore_best:
            raise ValueError(
                f"early_stopping is {self.patience}, but even the longest phase has only {most} "
                f"evaluation{'' if most == 1 else 's'} before its end, of which the first gives "
                "the score to beat; lower early_stopping or eval_every"
            )

    def on_run_begin(self, run: Run) -> None:
        self.check(run.plan, run.learner)

    def on_phase_begin(self, run: Run) -> None:
        self._forget()

    def on_evaluation(self, run: Run) -> None:
        now = run.result.evaluations[-1]
        if now.ends_phase or now.phase is None:
            return
        tasks = run.plan.phases[run.phase]
        score = sum(now.scores[task] for task in tasks) / len(tasks)
        if self.best is None or score > self.best + self.min_delta:
            self.best, self.waited = score, 0
            if self.restore_best:
                self.snapshot = pack(run.snapshot())
            return
        self.waited += 1
        if self.waited >= self.patience:
            run.end_phase()

    def on_phase_trained(self, run: Run) -> None:
        if self.snapshot is not None:
            run.rollback(self.snapshot)
        self._forget()


def evaluations_within(plan: Plan, steps: int, unit: int) -> int:
    """Return the number of evaluations in a phase before the one at its end.

    Args:
        plan: The plan.
        steps: World steps of the phase, 1 or more.
        unit: World steps between two moments when a run can be evaluated, 1 or more.
    """
    units = -(-steps // unit)
    return -(-units // -(-plan.eval_every // unit)) - 1
