"""Base class of scenarios: a world, an order of tasks, a training budget and a learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from everloop.envs import find_task
from everloop.loop import Learner, Plan, World

Split = Literal["train", "test"]


@dataclass
class Scenario(ABC):
    """A world, the order of its tasks, a training budget and how the tasks are evaluated.

    To define your own scenario, subclass this as a dataclass. Its fields become settings.

    Args:
        tasks: Names or IDs of the tasks in training order, such as plant-1,plant-0. A task may
            occur several times. By default all tasks, in the world's order.
        eval_every: World steps between two evaluations, 1 or more. Steps are counted over all
            copies of the world; in a stream a step is one example. By default there are a few
            evaluations per task. The end of each task is always evaluated.
        eval_tasks: Tasks to evaluate: all of them, or only those seen so far (seen). The measure
            forward transfer needs all.
        consolidation_examples: The largest number of examples that strategies and monitors get at
            a task's end, 1 or more. They are drawn from those that the task has shown, each once.
            By default all that a stream has shown, and in control the latest 2,048. A recurrent
            agent's example is a sequence of steps.
        reset_every: World steps after which all copies of the world are reset, 1 or more. A world
            that can't give its state can be saved exactly only at these steps and at the ends of
            tasks. By default it is reset only when a task begins.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[str] = ""
    """What a run needs besides everloop itself, such as data; `everloop list` shows it."""
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Strategy -> settings that suit this scenario better than the strategy's own defaults."""

    evaluations_per_task: ClassVar[int] = 10
    """Mean number of evaluations per task if `eval_every` is None."""

    tasks: list[str] | None = None

    @abstractmethod
    def make_world(self, split: Split, num_envs: int, seed: int) -> World:
        """Return `num_envs` copies of the world.

        Args:
            split: "train" for the world that is learned from, "test" for evaluation.
            num_envs: Number of copies, 1 or more.
            seed: Seed of the run, 0 or more.
        """

    @abstractmethod
    def make_learner(self, world: World, seed: int) -> Learner:
        """Return a new learner for `world`."""

    @abstractmethod
    def task_steps(self, world: World, task: int) -> int:
        """Return the world steps of training for `task`, counted over all copies."""

    def phase_steps(self, world: World, tasks: Sequence[int]) -> int:
        """Return the world steps of a phase that trains all of `tasks` at once."""
        return sum(self.task_steps(world, task) for task in tasks)

    def schedule_steps(self, world: World, phases: Sequence[Sequence[int]]) -> list[int]:
        """Return the world steps of each of the phases, in their order."""
        return [self.phase_steps(world, tasks) for tasks in phases]

    eval_every: int | None = None
    eval_tasks: Literal["all", "seen"] = "all"
    consolidation_examples: int | None = None
    reset_every: int | None = None

    def order(self, world: World, seed: int) -> list[list[int]]:
        """Return the ids of the tasks of each phase; by default one phase for each of `tasks`."""
        if self.tasks is None:
            return [[task.id] for task in world.tasks]
        return [[self.task_id(world.tasks, key)] for key in self.tasks]

    def world_notes(self) -> list[str]:
        """Return remarks on the world, in one line each, for the user to read before a run."""
        return []

    def without_effect(self) -> dict[str, str]:
        """Return setting -> reason, for settings that the other settings make useless."""
        return {}

    @property
    def more_training(self) -> str:
        """How to give a task more updates, as readable text; empty if unknown."""
        return ""

    @property
    def num_envs(self) -> int:
        """Number of copies of the world for training."""
        return 32

    @property
    def eval_envs(self) -> int:
        """Number of copies of the world for evaluation."""
        return 32

    @property
    def rollout_steps(self) -> int:
        """Steps of each copy in fresh rollouts at a task's end; 0 for none."""
        return 0

    def build(self, seed: int, joint: bool = False) -> tuple[Learner, Plan, World, World | None]:
        """Build everything that a run needs, from one seed.

        Args:
            seed: Seed for the worlds and the learner, 0 or more.
            joint: Train all tasks at once, in one phase with as many steps as all tasks have,
                instead of one phase per task.

        Returns:
            (learner, plan, world for evaluation, world for fresh rollouts or None).

        Raises:
            ValueError: In one line, if a setting is out of range, or a task occurs several times in
                joint training on a data set, which shows all examples equally often.
        """
        torch.manual_seed(seed)
        world = self.make_world("train", self.num_envs, seed)
        world.reset(seed=seed)
        order = self.order(world, seed)
        ids = [task for tasks in order for task in tasks]
        if joint and world.examples(ids) is not None:  # in control it gets more of the copies
            _check_distinct(ids)
        phases = [ids] if joint and ids else order
        steps = self.schedule_steps(world, phases)
        most = max(map(len, phases), default=0)
        if most > self.num_envs and world.examples(ids) is None:
            raise ValueError(
                f"{most} tasks can't be trained at once, because the world has only "
                f"{self.num_envs} copies; choose at most {self.num_envs} tasks"
            )
        every = self.eval_every
        if every is None:
            every = max(1, sum(steps) // (self.evaluations_per_task * max(1, len(ids))))
        plan = Plan(
            phases,
            steps,
            every,
            self.consolidation_examples,
            self.rollout_steps,
            self.reset_every,
            10_000 + seed,
            self.eval_tasks,
        )
        learner = self.make_learner(world, seed)
        rollouts = self.make_world("train", self.num_envs, seed) if self.rollout_steps else None
        plan.check(learner, rollouts)
        return learner, plan, self.make_world("test", self.eval_envs, seed), rollouts

    @staticmethod
    def task_id(tasks: Any, key: str) -> int:
        """Return a task's ID, given its name or its number; names come first."""
        named = any(task.name == key for task in tasks)
        return find_task(tasks, int(key) if key.isdigit() and not named else key).id


def _check_distinct(ids: Sequence[int]) -> None:
    """Raise ValueError if an ID occurs twice."""
    again = ", ".join(str(i) for i in sorted(set(ids)) if ids.count(i) > 1)
    if again:
        raise ValueError(
            f"tasks holds task {again} several times, but joint training shows all examples "
            "equally often; name each task once"
        )
