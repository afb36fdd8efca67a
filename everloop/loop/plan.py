"""The plan of a run: its phases, their lengths, and when to evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from everloop.contract import World
from everloop.loop.learners.learner import Learner


@dataclass(frozen=True)
class Plan:
    """The phases of training, and when to evaluate.

    Args:
        phases: Task ids of each phase, at least one.
        steps: World steps of each phase, 1 or more, divided among its tasks.
        eval_every: World steps between two evaluations within a phase, 1 or more.
        consolidation_examples: The largest number of examples, 1 or more, that strategies and
            callbacks get at the end of each task. They are a random sample of those that the world
            has shown in the task, each once. None means all examples that a data set has shown, and
            in other worlds the latest 2,048.
        fresh_rollouts: Steps of each copy of a world, 0 or more, that the agent acts at the end of
            each task to make that sample of new experience instead. They count in `steps`. A data
            set allows only 0.
        reset_every: World steps, 1 or more, after which all copies of the learner's world are
            reset within a phase, seeded from `seed` and the step. A world that can't give its state
            can be saved exactly only there and between phases. None means never.
        seed: Seed for evaluation, consolidation and those resets.
        eval_tasks: Tasks to evaluate: "all", or those "seen" so far. Forward transfer needs all.

    Raises:
        ValueError: If a phase has no task, if there are no phases, or if a number is below 1.
    """

    phases: Sequence[Sequence[int]]
    steps: Sequence[int]
    eval_every: int
    consolidation_examples: int | None = None
    fresh_rollouts: int = 0
    reset_every: int | None = None
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
        for name, least in (
            ("eval_every", 1),
            ("consolidation_examples", 1),
            ("fresh_rollouts", 0),
            ("reset_every", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")

    def check(self, learner: Learner, rollouts: World | None) -> None:
        """Check that `learner` can make the fresh rollouts, in the world `rollouts`.

        Raises:
            ValueError: If it can't.
        """
        if not self.fresh_rollouts:
            return
        given = f"fresh_rollouts is {self.fresh_rollouts}"
        if learner.labelled:
            raise ValueError(
                f"{given}; a data set would show examples that were not trained on, so leave it "
                "at 0"
            )
        if rollouts is None:
            raise ValueError(f"{given}; give the run a copy of the world as rollouts")
        if self.fresh_rollouts % learner.sequence_length:
            raise ValueError(
                f"{given}; it must be a multiple of {learner.sequence_length}, the length of an "
                "example"
            )
