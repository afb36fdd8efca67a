"""A scenario: a world, its tasks in an order, a budget, and whether the task ID is available."""

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

    Subclass it, as a dataclass, to make an experiment of your own; its fields are its settings.

    Args:
        tasks: Names or IDs of the tasks in training order; all, in the world's order, if none. Such
            as plant-1,plant-0.
        eval_every: World steps between two evaluations, 1 or more; a few evaluations a task if
            none. Steps are counted over all copies; in a stream a step is one example. Each task's
            end is evaluated too.
        eval_tasks: Tasks that an evaluation measures: all, or those seen so far. Forward transfer
            needs all.
        consolidation_steps: World steps per copy sampled at a task's end, for strategies and
            monitors, 1 or more. A stream has batch_size copies, so this is a number of batches. For
            a recurrent agent, a multiple of its sequence length.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[str] = ""
    """What a run needs beside the core of everloop, such as data; for `everloop list`."""
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings of strategies that suit this scenario better than their own defaults."""

    evaluations_per_task: ClassVar[int] = 10
    """How many evaluations a task gets on average, if `eval_every` does not say when they are made.
    """

    tasks: list[str] | None = None

    @abstractmethod
    def world(self, split: Split, num_envs: int, seed: int) -> World:
        """`num_envs` copies of the world, showing what is learned from ("train") or measured on
        ("test").
        """

    @abstractmethod
    def learner(self, world: World, seed: int) -> Learner:
        """A fresh learner for `world`."""

    @abstractmethod
    def task_steps(self, world: World, task: int) -> int:
        """World steps of training that `task` gets."""

    eval_every: int | None = None
    eval_tasks: Literal["all", "seen"] = "all"
    consolidation_steps: int = 32

    def without_effect(self) -> dict[str, str]:
        """Settings that do nothing beside the others, each with the reason."""
        return {}

    @property
    def more_training(self) -> str:
        """How a task gets more updates, for people to read."""
        return ""

    @property
    def num_envs(self) -> int:
        """Copies of the world that are learned from."""
        return 32

    @property
    def eval_envs(self) -> int:
        """Copies of the world that are measured in."""
        return 32

    def build(self, seed: int, joint: bool = False) -> tuple[Learner, Plan, World, World]:
        """(learner, plan, world to evaluate in, world to consolidate in), all from one seed.

        joint: one phase that trains all tasks at once for as many steps, instead of one phase a
        task. Raises ValueError for settings that cannot be.
        """
        torch.manual_seed(seed)
        world = self.world("train", self.num_envs, seed)
        world.reset(seed=seed)
        ids = (
            [task.id for task in world.tasks]
            if self.tasks is None
            else [self._find(world.tasks, key) for key in self.tasks]
        )
        phases: Sequence[Sequence[int]] = [ids] if joint and ids else [[task] for task in ids]
        steps = [sum(self.task_steps(world, task) for task in phase) for phase in phases]
        if max(map(len, phases), default=0) > self.num_envs:
            raise ValueError(
                f"{len(ids)} tasks are to be trained at once, allowed: at most {self.num_envs}, "
                "one for each copy of the world"
            )
        every = self.eval_every
        if every is None:
            every = max(1, sum(steps) // (self.evaluations_per_task * max(1, len(ids))))
        plan = Plan(phases, steps, every, self.consolidation_steps, 10_000 + seed, self.eval_tasks)
        learner = self.learner(world, seed)
        if self.consolidation_steps % learner.sequence_length:
            raise ValueError(
                f"consolidation_steps is {self.consolidation_steps}, allowed: a multiple of "
                f"{learner.sequence_length}"
            )
        return (
            learner,
            plan,
            self.world("test", self.eval_envs, seed),
            self.world("train", self.num_envs, seed),
        )

    @staticmethod
    def _find(tasks: Any, key: str) -> int:
        """A task's id by its name or, where no task has that name, its number."""
        named = any(task.name == key for task in tasks)
        return find_task(tasks, int(key) if key.isdigit() and not named else key).id
