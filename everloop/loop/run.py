"""A run: learn a task, consolidate it, evaluate all tasks, go on to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from everloop.contract import Task, World, check_world
from everloop.loop.batch import Batch
from everloop.loop.evaluate import returns, scaled, score_metric
from everloop.loop.learners.learner import Learner
from everloop.loop.pretraining import Pretraining
from everloop.loop.results.result import Evaluation, Result
from everloop.loop.state import generators, load_generators
from everloop.loop.strategies import Strategy


class Callback:
    """Watches a run, and may act on it between two updates. Every method does nothing by default.

    A method may read all of `run`, and may call its methods: `log`, `evaluate`, `boundary`,
    `end_phase` and `stop`.
    """

    def on_run_begin(self, run: Run) -> None:
        """Before anything is learned. The evaluation before training is in `run.result`."""

    def on_phase_begin(self, run: Run) -> None:
        """Phase `run.phase` begins."""

    def on_step(self, run: Run) -> None:
        """The learner has advanced: by a batch of a stream, or by a rollout and its updates."""

    def on_evaluation(self, run: Run) -> None:
        """The tasks were evaluated; the scores are in `run.result.evaluations[-1]`."""

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Numbers about training at step `run.steps`, by name."""

    def on_phase_end(self, run: Run) -> None:
        """Phase `run.phase` was learned, consolidated and evaluated."""

    def on_run_end(self, run: Run) -> None:
        """The run is done, or was stopped."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and when it is evaluated.

    Args:
        phases: The task ids of each phase.
        steps: World steps of each phase, divided among its tasks.
        eval_every: World steps between two evaluations within a phase.
        consolidation_steps: World steps sampled at the end of each task, for the strategies'
            `end_task` and for callbacks.
        seed: Seed for evaluation and consolidation.
        eval_tasks: The tasks that an evaluation measures: "all", or those "seen" so far. Forward
            transfer needs all.

    Raises:
        ValueError: For an empty schedule and for numbers below 1.
    """

    phases: Sequence[Sequence[int]]
    steps: Sequence[int]
    eval_every: int
    consolidation_steps: int
    seed: int = 0
    eval_tasks: Literal["all", "seen"] = "all"

    def __post_init__(self) -> None:
        if not self.phases or not all(self.phases):
            raise ValueError(
                f"the schedule is {list(self.phases)}; give at least one phase of at least one task"
            )
        if len(self.steps) != len(self.phases) or min(self.steps) < 1:
            raise ValueError(
                f"steps are {list(self.steps)}; give 1 or more for each of the {len(self.phases)} "
                "phases"
            )
        for name in ("eval_every", "consolidation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")


class Run:
    """A learner on its way through a plan, driven from outside.

    `go()` runs to the end; it is `advance()` until `done`. Everything that is not learning happens
    between two updates: evaluation, consolidation, and what callbacks do.

    Args:
        learner: What is trained.
        plan: The phases, their length and the evaluations.
        evaluation: World in which scores are measured; of a stream, the test split.
        consolidation: World like the learner's own, of a stream the train split, in which
            consolidation is sampled. Sampling there leaves the learner's world alone.
        strategies: In their order of application. They are attached to the learner, which leaves
            out inactive ones (strength 0).
        callbacks: Told of what happens, in this order.
        pretraining: Meta-training of the initial weights before the first task.

    Attributes:
        result: The evaluations so far.
        phase: Index of the phase under way, or of the next one between two phases.
        samples: The last ended phase's tasks, each with the examples it was consolidated on.

    Raises:
        ValueError: If a strategy cannot work with the learner, or not with the others; if an
            environment is no world.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        evaluation: World,
        consolidation: World,
        strategies: Sequence[Strategy] = (),
        callbacks: Sequence[Callback] = (),
        pretraining: Pretraining | None = None,
    ) -> None:
        for world in (learner.world, evaluation, consolidation):
            check_world(world)
        self.learner, self.plan = learner, plan
        self.evaluation, self.consolidation = evaluation, consolidation
        self.callbacks = list(callbacks)
        if pretraining is not None:
            pretraining.check(learner)
        self.pretraining = pretraining
        learner.attach(strategies)
        learner.on_log = self.log
        names = [task.name for task in evaluation.tasks]
        self.result = Result(
            names, [list(tasks) for tasks in plan.phases], score_metric(evaluation)
        )
        self.phase = 0
        self.samples: list[tuple[Task, Batch]] = []
        self._phase_end: int | None = None  # the step at which the phase under way ends
        self._stopped = False
        self._began: float | None = None

    @property
    def steps(self) -> int:
        """World steps learned from so far."""
        return self.learner.steps

    @property
    def done(self) -> bool:
        """True when every phase has ended, or after `stop()`."""
        return self._stopped or self.phase == len(self.plan.phases)

    @property
    def tasks(self) -> list[Task]:
        """The tasks of phase `phase`."""
        return [task for task in self.evaluation.tasks if task.id in self.plan.phases[self.phase]]

    def go(self) -> Result:
        """Run to the end and return the result.

        Raises:
            NotFiniteError: When an observation, a loss or a gradient is not finite. Callbacks have
                been told of everything before it.
        """
        with _denormals_flushed():
            if self._began is None:
                self.begin()
            while not self.done:
                self.advance()
        for callback in self.callbacks:
            callback.on_run_end(self)
        return self.result

    def begin(self) -> None:
        """Evaluate the untrained network, and tell the callbacks that the run begins."""
        self._began = time.perf_counter()
        self.result.evaluations.append(self._measure(ends_phase=False))
        for callback in self.callbacks:
            callback.on_run_begin(self)

    def advance(self) -> None:
        """One update of the learner, and whatever is due before and after it."""
        if self._phase_end is None:
            self._begin_phase()
        self.learner.advance()
        for callback in self.callbacks:
            callback.on_step(self)
        # callbacks may stop the run or end the phase: at a step, and at an evaluation
        if (
            not self._phase_is_over
            and self.steps - self.result.evaluations[-1].step >= self.plan.eval_every
        ):
            self.evaluate()
        if self._phase_is_over and not self._stopped:
            self._end_phase()

    @property
    def _phase_is_over(self) -> bool:
        return self._stopped or (self._phase_end is not None and self.steps >= self._phase_end)

    def _begin_phase(self) -> None:
        for callback in self.callbacks:
            callback.on_phase_begin(self)
        if self.phase == 0 and self.pretraining is not None:
            self.pretraining.run(self.learner)
        for task in self.tasks:
            for strategy in self.learner.strategies:
                strategy.begin_task(task, self.learner)
        steps = self.plan.steps[self.phase]
        self._phase_end = self.steps + steps
        self.learner.begin(self.plan.phases[self.phase], steps)

    def _end_phase(self) -> None:
        self._consolidate()
        self._record(ends_phase=True)
        self._phase_end = None
        for callback in self.callbacks:
            callback.on_phase_end(self)
        self.phase += 1

    def end_phase(self) -> None:
        """End the phase early: after this step it is consolidated and evaluated, and the next one
        begins.

        Raises:
            RuntimeError: Between two phases.
        """
        if self._phase_end is None:
            raise RuntimeError(
                "no phase is under way, so none can end; call end_phase from on_step or "
                "on_evaluation"
            )
        self._phase_end = self.steps

    def boundary(self) -> None:
        """Declare a task boundary within a phase: consolidate what was learned, and begin again.

        Strategies are told that the phase's tasks have ended and begin anew. The world and the
        result's phases go on as they are.

        Raises:
            RuntimeError: Between two phases.
        """
        if self._phase_end is None:
            raise RuntimeError(
                "no phase is under way, so there is no boundary to declare; call boundary from "
                "on_step"
            )
        self._consolidate()
        for task in self.tasks:
            for strategy in self.learner.strategies:
                strategy.begin_task(task, self.learner)

    def _consolidate(self) -> None:
        """Tell the strategies that the tasks under way have ended, with a sample of each."""
        self.samples = []
        for task in self.tasks:
            batch = self.learner.rollout(
                self.consolidation,
                [task.id],
                self.plan.consolidation_steps,
                self.plan.seed + 1 + self.phase,
            )
            for strategy in self.learner.strategies:
                strategy.end_task(task, [batch], self.learner)
            self.samples.append((task, batch))

    def stop(self) -> None:
        """End the run. The phase under way is neither consolidated nor evaluated."""
        self._stopped = True

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as copies.

        Loaded into a run made alike, that goes on as this one would, bit for bit.

        Raises:
            ValueError: For a world that can't give its state.
        """
        return {
            "learner": self.learner.state_dict(),
            "result": self.result.to_dict(),
            "phase": self.phase,
            "phase_end": self._phase_end,
            "seconds": self._seconds,
            "generators": generators(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. `go` then goes on where that run was.

        Raises:
            ValueError: For the state of another network or of other strategies.
        """
        self.learner.load_state_dict(state["learner"])
        self.result = Result.from_dict(state["result"])
        self.phase, self._phase_end = state["phase"], state["phase_end"]
        self._began = time.perf_counter() - state["seconds"]
        load_generators(state["generators"])  # last: what came before may have drawn from them

    def snapshot(self) -> dict[str, Any]:
        """What has been learned so far, as a copy for `rollback`."""
        return self.learner.learned()

    def rollback(self, snapshot: Mapping[str, Any]) -> None:
        """Return to what had been learned at `snapshot`: network, optimizer and strategies, bit for
        bit.

        The world, the steps and the result go on. A snapshot is of the task under way: one from
        before a strategy added weights is refused.

        Raises:
            ValueError: For a snapshot of another network.
        """
        self.learner.load_learned(snapshot)

    def evaluate(self) -> Evaluation:
        """Evaluate the tasks now, and add the evaluation to the result."""
        return self._record(ends_phase=False)

    def log(self, scalars: dict[str, float]) -> None:
        """Tell every callback of numbers at the present step; TensorBoard draws a curve for each
        name.
        """
        for callback in self.callbacks:
            callback.on_log(self, scalars)

    def _record(self, ends_phase: bool) -> Evaluation:
        now = self._measure(ends_phase)
        self.result.steps, self.result.wall_seconds = self.steps, self._seconds
        self.result.evaluations.append(now)
        for callback in self.callbacks:
            callback.on_evaluation(self)
        return now

    @property
    def _seconds(self) -> float:
        return 0.0 if self._began is None else time.perf_counter() - self._began

    def _measure(self, ends_phase: bool) -> Evaluation:
        """The scores of the tasks now. Training does not notice it."""
        phase = (
            self.phase if self.result.evaluations else None
        )  # the first evaluation comes before any phase
        seen = None
        if self.plan.eval_tasks == "seen":
            seen = {
                task
                for tasks in self.plan.phases[: 0 if phase is None else phase + 1]
                for task in tasks
            }
        now = returns(self.learner, self.evaluation, self.learner.strategies, self.plan.seed, seen)
        return Evaluation(self.steps, phase, ends_phase, scaled(self.evaluation, now), now)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Treat numbers below 1e-38 as 0.

    Where gradients have vanished, Adam's moments end up there, and a CPU calculates with such
    numbers many times slower (docs/results.md).
    """
    already = not bool(torch.tensor(1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)
