"""The loop: learn a task, consolidate it, measure all of them, go on to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from everloop.loop.batch import spread
from everloop.loop.evaluate import returns, scaled, score_metric
from everloop.loop.learner import Learner
from everloop.loop.monitors import Divergence
from everloop.loop.result import Evaluation, Result
from everloop.loop.strategies import Strategy
from everloop.loop.world import World


class Listener:
    """Hears what happens in a run. Every method defaults to nothing."""

    def on_begin(self, result: Result, total_steps: int) -> None:
        """Before anything is learned; `result.before` is known."""

    def on_phase(self, result: Result, phase: int) -> None:
        """Phase `phase` begins."""

    def on_steps(self, steps: int) -> None:
        """`steps` more world steps have been learned from."""

    def on_evaluation(self, result: Result, divergence: dict[str, float]) -> None:
        """Tasks were evaluated: the last of `result.evaluations`; nan for a task that was not."""

    def on_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Numbers about the training itself."""

    def on_end(self, result: Result) -> None:
        """The run is over."""


@dataclass(frozen=True)
class Plan:
    """What is trained and how it is measured.

    phases: the task ids of each phase; steps: world steps for each phase, divided among its tasks.
    eval_every: world steps between evaluations. seed: of evaluation and consolidation.
    eval_tasks: which tasks an evaluation measures: "all", or those "seen" so far. Forward transfer needs all.
    consolidation_steps: world steps played after a task for the strategies' `end_task` and the probes.
    Raises ValueError for an empty schedule and numbers below 1.
    """

    phases: Sequence[Sequence[int]]
    steps: Sequence[int]
    eval_every: int
    consolidation_steps: int
    seed: int = 0
    eval_tasks: Literal["all", "seen"] = "all"

    def __post_init__(self) -> None:
        if not self.phases or not all(self.phases):
            raise ValueError(f"the schedule is {list(self.phases)}, allowed: at least one phase of at least one task")
        if len(self.steps) != len(self.phases) or min(self.steps) < 1:
            raise ValueError(f"steps are {list(self.steps)}, allowed: 1 or more for each of the {len(self.phases)} phases")
        if self.eval_every < 1:
            raise ValueError(f"eval_every is {self.eval_every}, allowed: 1 or more")
        if self.consolidation_steps < 1:
            raise ValueError(f"consolidation_steps is {self.consolidation_steps}, allowed: 1 or more")


PROBE = 128  # examples on which divergence is measured


def run(
    learner: Learner,
    plan: Plan,
    evaluation: World,
    consolidation: World,
    strategies: Sequence[Strategy],
    listeners: Sequence[Listener] = (),
) -> Result:
    """Run `plan`: the score matrix, with all evaluations in between.

    evaluation: the world in which scores are measured (of a stream: the test split).
    consolidation: one like the learner's own (of a stream: the train split); playing in it leaves the learner's alone.
    Raises NotFiniteError, after the listeners have heard all that happened until then.
    """
    with _without_denormals():
        return _Run(learner, plan, evaluation, consolidation, strategies, listeners).go()


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 are 0 meanwhile: where gradients have vanished, Adam's averages of them end there, and stay.

    A CPU calculates with such numbers many times slower (docs/results.md).
    """
    already = not bool(torch.tensor(1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


class _Run:
    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        evaluation: World,
        consolidation: World,
        strategies: Sequence[Strategy],
        listeners: Sequence[Listener],
    ) -> None:
        self.learner, self.plan, self.strategies, self.listeners = learner, plan, strategies, listeners
        self.evaluation, self.consolidation = evaluation, consolidation
        self.divergence = Divergence()
        self.phase = 0
        learner.attach(strategies)
        learner.on_scalars = self.on_scalars
        names = [task.name for task in evaluation.tasks]
        self.result = Result(names, [list(p) for p in plan.phases], score_metric(evaluation))
        self.result.evaluations.append(self.measure(None))

    def on_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for listener in self.listeners:
            listener.on_scalars(step, scalars)

    def measure(self, phase: int | None, ends_phase: bool = False) -> Evaluation:
        """An evaluation now, while `phase` is under way."""
        seen = None
        if self.plan.eval_tasks == "seen":
            seen = {task for tasks in self.plan.phases[: 0 if phase is None else phase + 1] for task in tasks}
        now = returns(self.learner, self.evaluation, self.strategies, self.plan.seed, seen)
        return Evaluation(self.learner.steps, phase, ends_phase, scaled(self.evaluation, now), now)

    def go(self) -> Result:
        self.began = time.perf_counter()
        for listener in self.listeners:
            listener.on_begin(self.result, sum(self.plan.steps))
        for phase in range(len(self.plan.phases)):
            self.phase = phase
            self.play_phase()
        for listener in self.listeners:
            listener.on_end(self.result)
        return self.result

    def play_phase(self) -> None:
        ids = list(self.plan.phases[self.phase])
        tasks = [task for task in self.evaluation.tasks if task.id in ids]
        for listener in self.listeners:
            listener.on_phase(self.result, self.phase)
        for task in tasks:
            for strategy in self.strategies:
                strategy.begin_task(task, self.learner)
        self.phase_end = self.learner.steps + self.plan.steps[self.phase]
        self.learner.learn(ids, self.plan.steps[self.phase], self.tick)
        for task in tasks:
            batch = self.learner.rollout(self.consolidation, [task.id], self.plan.consolidation_steps, self.plan.seed + 1 + self.phase)
            for strategy in self.strategies:
                strategy.end_task(task, self.learner, [batch])
            self.divergence.remember(task.name, self.learner, spread([batch], PROBE)[0])
        self.record(self.measure(self.phase, ends_phase=True))

    def tick(self, steps: int) -> None:
        for listener in self.listeners:
            listener.on_steps(steps)
        last = self.result.evaluations[-1].step
        if self.learner.steps < self.phase_end and self.learner.steps - last >= self.plan.eval_every:
            self.record(self.measure(self.phase))

    def record(self, now: Evaluation) -> None:
        self.result.steps, self.result.wall_seconds = self.learner.steps, time.perf_counter() - self.began
        self.result.evaluations.append(now)
        divergence = self.divergence.update(self.learner).values
        for listener in self.listeners:
            listener.on_evaluation(self.result, divergence)
