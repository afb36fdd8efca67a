"""A run: learn a task, consolidate it, evaluate all tasks, and go on to the next one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from everloop.contract import Task, World, check_world
from everloop.loop.batch import Batch
from everloop.loop.checkpoint import Checkpoint
from everloop.loop.denormals import denormals_flushed
from everloop.loop.evaluate import check_references, returns, scaled, score_metric
from everloop.loop.learners.learner import Learner
from everloop.loop.plan import Plan
from everloop.loop.pretraining import Pretraining
from everloop.loop.results.result import Evaluation, Result
from everloop.loop.state import (
    by_name,
    declared,
    generators,
    load_generators,
    packed,
    unpack_into,
)
from everloop.loop.strategies import Strategy
from everloop.loop.world import NotFiniteError


class Callback:
    """Watches a run, and may act on it between two updates. Every hook does nothing by default.

    A hook may read all of `run`, and may call its methods: `log`, `evaluate`, `boundary`,
    `end_phase` and `stop`.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that a resumed run needs, in addition to those of the base classes
    (`everloop.loop.state`).
    """

    def on_run_begin(self, run: Run) -> None:
        """Called before training. The evaluation of the untrained network is in `run.result`."""

    def on_phase_begin(self, run: Run) -> None:
        """Called when phase `run.phase` begins."""

    def on_step(self, run: Run) -> None:
        """Called after the learner has advanced by a batch, or by a rollout and its updates."""

    def on_evaluation(self, run: Run) -> None:
        """Called after an evaluation, which is `run.result.evaluations[-1]`."""

    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Called with numbers about training by name, at step `run.steps`."""

    def on_phase_trained(self, run: Run) -> None:
        """Called when phase `run.phase` was trained, before it is consolidated."""

    def on_phase_end(self, run: Run) -> None:
        """Called after phase `run.phase` was trained, consolidated and evaluated."""

    def on_advance_end(self, run: Run) -> None:
        """Called between two updates, when everything due at this step has been done.

        Here the run can be saved.
        """

    def on_save(self, run: Run) -> None:
        """Called before the run is saved. Write what a resumed run can't write again."""

    def on_failure(self, run: Run, error: NotFiniteError) -> bool:
        """Called when a step has failed with `error`.

        Returns:
            True if this callback has brought the run back to an earlier state, to go on from there.
        """
        return False

    def on_rollback(self, run: Run) -> None:
        """Called when the run was brought back: `run.result.rollbacks[-1]` says why."""

    def on_run_end(self, run: Run) -> None:
        """Called when the run is done, or was stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the attributes named in `state`."""
        return packed(self, declared(type(self)))

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Restore a saved state in a restored `run`, whose `on_run_begin` is not called."""
        unpack_into(self, state)
        self._restored(run)

    def _restored(self, run: Run) -> None:
        """Called after loading, to recompute what follows from the state."""


class Run:
    """Training of a learner by a plan, driven from outside.

    `go()` runs to the end by calling `advance()` until `done`. Everything other than learning
    happens between two updates: evaluation, consolidation, and the actions of callbacks.

    Args:
        learner: The learner to train.
        plan: The phases, their lengths and the evaluations.
        evaluation: World for evaluation; for a stream, its test split.
        strategies: Strategies in their order of application. They are attached to the learner,
            which leaves out inactive ones (strength 0).
        callbacks: Callbacks in the order in which their hooks are called.
        pretraining: Meta-training of the initial weights before the first task.
        rollouts: A copy of the learner's own world for the plan's `fresh_rollouts`; None if there
            are none.

    Attributes:
        result: The evaluations so far.
        phase: Index of the phase in progress; between two phases, of the next one.
        samples: Tasks of the phase that ended last, each with batches of its consolidation
            examples. The batches of a data set are read from it when they are used.

    Raises:
        ValueError: If a strategy cannot work with the learner or with the others, or if an
            environment is not a world.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        evaluation: World,
        strategies: Sequence[Strategy] = (),
        callbacks: Sequence[Callback] = (),
        pretraining: Pretraining | None = None,
        rollouts: World | None = None,
    ) -> None:
        for world in (learner.world, evaluation, rollouts or evaluation):
            check_world(world)
        plan.check(learner, rollouts)
        self.learner, self.plan = learner, plan
        self.evaluation, self.rollouts = evaluation, rollouts
        self.learner.shown.limit = plan.consolidation_examples
        self.learner.reset_seed = plan.seed
        self.callbacks = list(callbacks)
        if pretraining is not None:
            pretraining.check(learner)
        self.pretraining = pretraining
        learner.attach(strategies)
        learner.on_log = self.log
        names = [task.name for task in evaluation.tasks]
        check_references(evaluation)
        self.result = Result(
            names, [list(tasks) for tasks in plan.phases], score_metric(evaluation)
        )
        self.phase = 0
        self.samples: list[tuple[Task, Sequence[Batch]]] = []
        self._phase_end: int | None = None  # the step at which the phase in progress ends
        self._reset: int | None = None  # the step at which the world was last reset in a phase
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
            NotFiniteError: If an observation, a reward, a loss or a gradient is not finite.
                Callbacks have been called for everything before it, and none of them has brought
                the run back (`everloop.loop.Guard`).
        """
        with denormals_flushed():
            if self._began is None:
                self.begin()
            while not self.done:
                try:
                    self.advance()
                except NotFiniteError as error:
                    if not any(callback.on_failure(self, error) for callback in self.callbacks):
                        raise
        for callback in self.callbacks:
            callback.on_run_end(self)
        return self.result

    def begin(self) -> None:
        """Evaluate the untrained network, and call the callbacks' `on_run_begin`."""
        self._began = time.perf_counter()
        self.result.evaluations.append(self._measure(ends_phase=False))
        for callback in self.callbacks:
            callback.on_run_begin(self)

    def advance(self) -> None:
        """Advance the learner once, and do whatever is due before and after it."""
        if self._phase_end is None:
            self._begin_phase()
        before = self.steps
        if not self.learner.advance():
            self._phase_end = self.steps  # a callback of SB3 has ended the phase early
        for callback in self.callbacks:
            callback.on_step(self)
        # Callbacks may stop the run or end the phase, both in on_step and in on_evaluation.
        if (
            not self._phase_is_over
            and self.steps - self.result.evaluations[-1].step >= self.plan.eval_every
        ):
            self.evaluate()
        if self._phase_is_over and not self._stopped:
            self._end_phase()
        elif self._reset_is_due(before):
            self.learner.reset_world()
            self._reset = self.steps
        for callback in self.callbacks:
            callback.on_advance_end(self)

    def _reset_is_due(self, before: int) -> bool:
        """Return whether the plan resets the world in the step that began at `before`."""
        every = self.plan.reset_every
        return every is not None and self.steps // every > before // every

    @property
    def inexact(self) -> str | None:
        """Why a run that is restored from here differs from one that goes on; None if it doesn't.

        A world that can't give its state is restored exactly where all of its copies are reset: at
        a phase's end, and where the plan's `reset_every` says.
        """
        if self._phase_end is None or self._reset == self.steps or self.learner.gives_state:
            return None
        return (
            f"{type(self.learner.world).__name__} can't give its state, and the phase had not ended"
        )

    @property
    def _phase_is_over(self) -> bool:
        """True if the phase has had its steps, or the run was stopped."""
        return self._stopped or (self._phase_end is not None and self.steps >= self._phase_end)

    def _begin_phase(self) -> None:
        """Tell callbacks, strategies and the learner that the next phase begins."""
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
        """Consolidate and evaluate the phase, and move on to the next one."""
        for callback in self.callbacks:
            callback.on_phase_trained(self)
        self._consolidate()
        self._record(ends_phase=True)
        self._phase_end = None
        for callback in self.callbacks:
            callback.on_phase_end(self)
        self.phase += 1

    def end_phase(self) -> None:
        """End the phase early.

        After the present step it is consolidated and evaluated, and the next one begins.

        Raises:
            RuntimeError: If no phase is in progress.
        """
        if self._phase_end is None:
            raise RuntimeError(
                "no phase is in progress, so none can end; call end_phase from on_step or "
                "on_evaluation"
            )
        self._phase_end = self.steps

    def boundary(self) -> None:
        """Declare a task boundary within a phase.

        The phase's tasks are consolidated, and strategies see them end and begin again. The world
        and the phases of the result do not change.

        Raises:
            RuntimeError: If no phase is in progress.
        """
        if self._phase_end is None:
            raise RuntimeError(
                "no phase is in progress, so there is no boundary to declare; call boundary from "
                "on_step"
            )
        self._consolidate()
        for task in self.tasks:
            for strategy in self.learner.strategies:
                strategy.begin_task(task, self.learner)

    def _consolidate(self) -> None:
        """Call the strategies' `end_task` for the tasks in progress, with a sample of each."""
        self.samples = []
        for task in self.tasks:
            batches = self._sample(task)
            if not batches and not self.learner.strategies:
                continue
            if not batches:
                raise ValueError(
                    f"no example of task {task.name} was shown while it was trained, so it can't "
                    "be consolidated; train longer or in larger batches"
                )
            for strategy in self.learner.strategies:
                strategy.end_task(task, batches, self.learner)
            self.samples.append((task, batches))
        self.learner.shown.clear()

    def _sample(self, task: Task) -> Sequence[Batch]:
        """Return examples that the world has shown in `task`, or of fresh rollouts."""
        seed = int(np.random.SeedSequence([self.plan.seed, self.phase]).generate_state(1)[0])
        if self.rollouts is None or not self.plan.fresh_rollouts:
            return self.learner.shown.sample(task.id, seed)
        batch = self.learner.rollout(self.rollouts, [task.id], self.plan.fresh_rollouts, seed)
        steps = self.plan.fresh_rollouts * self.rollouts.num_envs
        self.learner.steps += steps
        if self._phase_end is not None:  # they don't shorten the phase
            self._phase_end += steps
        return [batch]

    def stop(self) -> None:
        """End the run. The phase in progress is neither consolidated nor evaluated."""
        self._stopped = True

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that the rest of the run depends on.

        A run of the same learner, plan, strategies and callbacks that loads it continues as this
        one would, bit for bit, unless it is `inexact`.
        """
        return {
            "learner": self.learner.state_dict(),
            "result": self.result.to_dict(),
            "phase": self.phase,
            "phase_end": self._phase_end,
            "reset": self._reset,
            "seconds": self._seconds,
            "callbacks": {
                name: callback.state_dict()
                for name, callback in self._callbacks_by_name().items()
                if declared(type(callback))
            },
            "generators": generators(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a run from its `state_dict`. `go` then continues from there.

        Raises:
            ValueError: If the state belongs to another network, or to other strategies or
                callbacks.
        """
        states, callbacks = state["callbacks"], self._callbacks_by_name()
        needed = [name for name, callback in callbacks.items() if declared(type(callback))]
        if set(states) != set(needed):
            raise ValueError(
                f"the state belongs to the callbacks {', '.join(states) or 'none'}; here are "
                f"{', '.join(needed) or 'none'}"
            )
        self.learner.load_state_dict(state["learner"])
        self.result = Result.from_dict(state["result"])
        self.phase, self._phase_end = state["phase"], state["phase_end"]
        self._reset = state["reset"]
        self._began = time.perf_counter() - state["seconds"]
        for name, callback in callbacks.items():
            callback.load_state_dict(states.get(name, {}), self)
        load_generators(state["generators"])  # last, because loading may draw random numbers

    def save(self, folder: Path | str, about: Mapping[str, Any] = {}) -> None:
        """Save the run as a checkpoint, which replaces an earlier one in the folder.

        Args:
            folder: Folder of the checkpoint.
            about: What else its manifest says.

        Raises:
            OSError: If it can't be written; an earlier checkpoint is as before.
            ValueError: If the state of a user's own part holds something else than tensors, arrays
                and plain Python.
        """
        for callback in self.callbacks:
            callback.on_save(self)
        Checkpoint(Path(folder), self.steps, self.inexact, about).write(self.state_dict())

    def load(self, checkpoint: Checkpoint | Path | str) -> None:
        """Restore the run from a checkpoint. `go` then continues from there.

        Args:
            checkpoint: The checkpoint, or its folder.

        Raises:
            ValueError: If the checkpoint is damaged, or it belongs to another run.
        """
        found = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
        try:
            self.load_state_dict(found.state())
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{found.folder} does not fit this run ({type(error).__name__}: {error}); build "
                "the run as it was when it was saved"
            ) from error

    def _callbacks_by_name(self) -> dict[str, Callback]:
        """Return the callbacks by the name of their class. Later ones of a class get a number."""
        return by_name((type(callback).__name__, callback) for callback in self.callbacks)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of what has been learned so far, for `rollback`."""
        return self.learner.learned()

    def rollback(self, snapshot: Mapping[str, Any]) -> None:
        """Restore the network, the optimizer and the strategies from a snapshot, bit for bit.

        The world, the steps, the result and the factor of the learning rate stay as they are. The
        snapshot must come from the task in progress: the network must not have got new weights
        since.

        Raises:
            ValueError: If the snapshot belongs to another network.
        """
        factor = self.learner.rate_factor
        self.learner.load_learned(snapshot)
        self.learner.scale_rate(factor)

    def evaluate(self) -> Evaluation:
        """Evaluate the tasks now, and add the evaluation to the result."""
        return self._record(ends_phase=False)

    def log(self, scalars: dict[str, float]) -> None:
        """Pass numbers at the present step to every callback's `on_log`.

        TensorBoard draws a curve for each name.
        """
        for callback in self.callbacks:
            callback.on_log(self, scalars)

    def _record(self, ends_phase: bool) -> Evaluation:
        """Evaluate, add the evaluation to the result, and tell the callbacks."""
        now = self._measure(ends_phase)
        self.result.steps, self.result.wall_seconds = self.steps, self._seconds
        tally = self.learner.tally
        self.result.updates, self.result.presentations = tally.updates, tally.presentations
        self.result.online_accuracy = tally.online_accuracy
        self.result.online_return = tally.online_return
        self.result.evaluations.append(now)
        for callback in self.callbacks:
            callback.on_evaluation(self)
        return now

    @property
    def _seconds(self) -> float:
        """Seconds since the run began."""
        return 0.0 if self._began is None else time.perf_counter() - self._began

    def _measure(self, ends_phase: bool) -> Evaluation:
        """Evaluate the tasks now, without effect on training."""
        phase = self.phase if self.result.evaluations else None  # the first precedes any phase
        seen = None
        if self.plan.eval_tasks == "seen":
            begun = self.plan.phases[: 0 if phase is None else phase + 1]
            seen = {task for tasks in begun for task in tasks}
        now = returns(self.learner, self.evaluation, self.learner.strategies, self.plan.seed, seen)
        return Evaluation(self.steps, phase, ends_phase, scaled(self.evaluation, now), now)
