"""What all streams of labelled data have in common: type, schedule, network, training."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from everloop.agents import levels_of
from everloop.envs import PRESETS, Examples, Protocol, Schedule, make_vec
from everloop.loop import Learner, NestedOptimizer, SupervisedLearner, Training, World, levels_by_depth
from everloop.scenarios.scenario import Scenario, Split

DATA = "EVERLOOP_DATA"


@dataclass
class StreamScenario(Scenario):
    """A data set as a sequence of tasks (van de Ven, Tuytelaars & Tolias 2022 name the three types).

    scenario_type: "class" tells the classes of all tasks apart without being told the task; "domain" says which of
        the task's classes, without being told the task; "task" is told it, and has a head for each.
    preset: what gets among a task's examples: "easy" nothing; "moderate" 10 % of the next task's, 5 % of past tasks',
        5 % out of distribution; "hard" twice as much.
    blur_ratio, other_task_ratio, ood_ratio: these shares one by one, in place of the preset's.
    gradual: share of a visit in which a task passes into its neighbours.
    epochs: passes over each task's examples; 1 is single-pass. The last batch is filled up from the next pass.
    iterations: batches of training that each task gets, instead of whole passes.
    batch_size: examples a step.
    training: learning rate, precision, device and the like.
    periods: nested learning: the network's continuum memories, or else its layers from the last to the first, in as many
        levels, change every so many steps (`everloop.loop.NestedOptimizer`); all at every step if none.
    workers: threads that prepare the next examples while the network learns.
    held_out: how many training examples, the same ones for every seed, are left out of training and measured on in place
        of the test examples: for choosing settings.
    data: a local folder or a Hub id; by default a folder in EVERLOOP_DATA if that is set, else the Hub.
    eval_tasks: what evaluations measure: the tasks "seen" so far, or "all", which forward transfer needs.
    """

    env_id: ClassVar[str] = "everloop/ImageStream-v0"
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ewc": {"strength": 100.0},
        "replay": {"strength": 1.0, "capacity": 2000, "batch_size": 128},
    }

    scenario_type: Literal["class", "domain", "task"] = "class"
    preset: Literal["easy", "moderate", "hard"] = "easy"
    blur_ratio: float | None = None
    other_task_ratio: float | None = None
    ood_ratio: float | None = None
    gradual: float = 0.0
    epochs: int = 1
    iterations: int | None = None
    batch_size: int = 128
    training: Training = field(default_factory=Training)
    periods: list[int] | None = None
    workers: int = 0
    held_out: int = 0
    data: str | None = None
    eval_tasks: Literal["all", "seen"] = "seen"
    consolidation_steps: int = 8

    @property
    def num_envs(self) -> int:
        return self.batch_size

    @property
    def eval_envs(self) -> int:
        return 250

    @abstractmethod
    def examples(self) -> tuple[Examples, Examples]:
        """The data set, (train, test)."""

    @cached_property
    def loaded(self) -> tuple[Examples, Examples]:
        """`examples()`, once for all worlds of this scenario; the test's are replaced if some are held out."""
        train, test = self.examples()
        if not self.held_out:
            return train, test
        if not 0 < self.held_out < len(train):
            raise ValueError(f"held_out is {self.held_out}, allowed: 0 to {len(train) - 1}")
        rows = np.random.default_rng(7).permutation(len(train))
        return train[rows[self.held_out :]], train[rows[: self.held_out]]

    @abstractmethod
    def protocol(self) -> Protocol:
        """How it becomes tasks."""

    @abstractmethod
    def module(self, world: World, heads: int) -> nn.Module:
        """A fresh network with a head, or with a head for each of `heads` tasks."""

    def world(self, split: Split, num_envs: int, seed: int) -> World:
        if self.scenario_type not in ("class", "domain", "task"):
            raise ValueError(f"scenario_type is {self.scenario_type!r}, allowed: class, domain, task")
        world = self._world(split, num_envs, None)
        if self.tasks is not None:  # now that tasks have numbers, the schedule can be told their order
            world = self._world(split, num_envs, [self._find(world.tasks, key) for key in self.tasks])
        return world

    def _world(self, split: Split, num_envs: int, order: list[int] | None) -> World:
        world: Any = make_vec(
            self.env_id,
            num_envs,
            data=self.loaded,
            protocol=self.protocol(),
            split=split,
            label_space="global" if self.scenario_type == "class" else "within_task",
            task_cue=self.scenario_type == "task",
            episode_length=256 if split == "train" else 1,  # a test is over after one pass, not after an episode
            schedule=self.schedule(order),
            workers=self.workers if split == "train" else 0,
        )
        checked: World = world
        return checked

    def schedule(self, order: list[int] | None) -> Schedule:
        """What gets among a task's examples."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, allowed: {', '.join(PRESETS)}")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}, allowed: 1 or more")
        if self.iterations is not None and (self.iterations < 1 or self.gradual):
            allowed = "1 or more" if self.iterations < 1 else "none where gradual is above 0, which is a share of whole passes"
            raise ValueError(f"iterations is {self.iterations}, allowed: {allowed}")
        own = {name: getattr(self, name) for name in PRESETS[self.preset]}
        ratios: dict[str, Any] = {**PRESETS[self.preset], **{name: value for name, value in own.items() if value is not None}}
        return Schedule(**ratios, gradual=self.gradual, passes=self.epochs, order=order)

    def learner(self, world: World, seed: int) -> Learner:
        module = self.module(world, len(world.tasks) if self.scenario_type == "task" else 1).to(self.training.find_device())
        return SupervisedLearner(module, world, self.training, self.optimizer(module))

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """What trains it; the learner's own if none."""
        if self.periods is None:
            return None
        return NestedOptimizer(self.training.make_optimizer(module), levels_of(module) or levels_by_depth(module, self.periods))

    def task_steps(self, world: World, task: int) -> int:
        if self.iterations is not None:
            return self.iterations * self.batch_size
        return self.epochs * world.examples(task)  # type: ignore[attr-defined, no-any-return]

    def given(self, name: str, hub: str | None = None) -> str:
        """Where the data is: `data` if given, else the folder `name` in EVERLOOP_DATA if that is set, else the Hub.

        Raises ValueError where nothing says where.
        """
        if self.data is not None:
            return self.data
        if DATA not in os.environ:
            if hub is None:
                raise ValueError(f"data is None, allowed: a folder or a Hub id, or {DATA} set; it needs {self.needs}")
            return hub
        folder = Path(os.environ[DATA]) / name
        if not folder.is_dir():
            raise ValueError(f"{DATA} is {os.environ[DATA]!r}, which holds no folder {name!r}; allowed: one that does, or --data")
        return str(folder)
