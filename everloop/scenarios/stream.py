"""The base of all streams of labelled data: scenario type, schedule, network and training."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from everloop.agents import Classifier, OwnBackbone, levels_of
from everloop.contract import CUE
from everloop.envs import PRESETS, Examples, Mixture, TaskSplit, make_vec
from everloop.envs.data.hub import Unreachable
from everloop.loop import (
    Learner,
    NestedOptimizer,
    SupervisedLearner,
    Training,
    World,
    levels_by_depth,
    likelihood_for,
)
from everloop.scenarios.names import Factory, find_object, first_required, make_optimizer
from everloop.scenarios.scenario import Scenario, Split

DATA = "EVERLOOP_DATA"
ADAM = Factory("adam")


def own_network(factory: Factory, world: World, heads: int) -> nn.Module:
    """Return the user's network with a linear head for each of `heads` tasks.

    Args:
        factory: The network's class and settings.
        world: A stream with images (H, W, C), tokens (L,) or features (D,).
        heads: Number of heads, 1 or more.

    Raises:
        ValueError: In one line, if the network can't be made or can't process the examples.
    """
    shown = world.single_observation_space
    assert isinstance(shown, spaces.Dict), "a stream has named modalities"
    modality, space = next((name, space) for name, space in shown.items() if name != CUE)
    actions = world.single_action_space
    tags = isinstance(actions, spaces.MultiDiscrete)
    shape = tuple(space.shape or ())
    arguments = (
        [(shape[2], *shape[:2]) if modality == "image" else shape]
        if first_required(find_object(factory.path))
        else []
    )
    try:
        net = factory(*arguments)
    except Exception as error:  # a user's network can raise anything
        raise ValueError(
            f"network {factory.path} can't be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"network {factory.path} makes {type(net).__name__}; it must make a torch module"
        )
    outputs = likelihood_for(actions).size() // (shape[0] if tags else 1)
    backbone = OwnBackbone(net, shape, tags, vectors=modality == "features")
    return Classifier(backbone, outputs, modality, heads)


@dataclass
class StreamScenario(Scenario):
    """A data set as a sequence of tasks.

    The three scenario types are those of van de Ven, Tuytelaars & Tolias 2022.

    Args:
        scenario_type: Class-, domain- or task-incremental learning. class predicts among the
            classes of all tasks, without the task ID. domain predicts among the classes of one
            task, without the task ID. task does so with the task ID, and has a head for each task.
        preset: Amount of other data mixed into each task's examples: easy, moderate or hard. easy
            mixes in none. moderate mixes in 10 % from the next task, 5 % from past tasks and 5 %
            out of distribution. hard mixes in twice as much.
        blur_ratio: Share of examples from the next task, from 0 to 1. By default the preset's. The
            three ratios must sum to less than 1.
        other_task_ratio: Share of examples from past tasks, from 0 to 1. By default the preset's.
        ood_ratio: Share of examples altered out of distribution, from 0 to 1. By default the
            preset's.
        gradual: Share of each task's training that blends into its neighbours, from 0 to 1. 0 makes
            abrupt boundaries. At a blended boundary, every second example is the neighbour's.
        epochs: Passes over each task's examples, 1 or more; 1 is single-pass training. The last
            batch is filled up from the next pass.
        iterations: Training batches for each task, 1 or more, in place of epochs. Needs gradual 0.
        batch_size: Examples in each training batch, 1 or more.
        training: Learning rate, precision, device and other options of training.
        optimizer: Name of a torch optimizer, such as adamw or sgd, or the path of your own. Set its
            arguments with optimizer.KEY, and the learning rate with training.learning_rate.
        network: Your own torch module, as package.module:Class; set its arguments with network.KEY.
            It maps images (N, C, H, W), floats from 0 to 1, token IDs (N, L) or vectors (N, D) to
            features. Heads are added. If the class has a required argument, it gets the shape of
            one input, such as (C, H, W).
        periods: Training steps between updates of each level of layers, 1 or more per level. This
            is nested learning. Levels are the network's continuum memories if it has any, else its
            layers from the last to the first. By default every step updates all layers.
        workers: Threads that prepare upcoming examples while the network learns, 0 or more.
        held_out: Number of training examples that replace the test examples, 0 or more. They are
            not trained on, so use them to choose settings. They are the same for every seed. 0
            evaluates on the test examples.
        data: Data set, as a folder or as owner/name on the Hugging Face Hub. By default the
            scenario's folder in EVERLOOP_DATA if that is set, else its data set on the Hub.
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
    optimizer: Factory = ADAM
    network: Factory | None = None
    periods: list[int] | None = None
    workers: int = 0
    held_out: int = 0
    data: str | None = None
    eval_tasks: Literal["all", "seen"] = "seen"

    @property
    def more_training(self) -> str:
        return (
            "raise --epochs, or lower --batch-size"
            if self.iterations is None
            else "raise --iterations"
        )

    @property
    def num_envs(self) -> int:
        return self.batch_size

    @property
    def eval_envs(self) -> int:
        return 250

    @abstractmethod
    def examples(self) -> tuple[Examples, Examples]:
        """Return the data set, (train, test)."""

    @cached_property
    def loaded(self) -> tuple[Examples, Examples]:
        """The data set, (train, test), loaded once. Held-out examples replace the test examples."""
        try:
            train, test = self.examples()
        except Unreachable as error:
            folder = getattr(self, "folder", self.name)
            raise ValueError(
                f"{error}; put it into a folder {folder!r} in {DATA}, give --data FOLDER, or go "
                "online once"
            ) from None
        if not self.held_out:
            return train, test
        if not 0 < self.held_out < len(train):
            raise ValueError(f"held_out is {self.held_out}; it must be 0 to {len(train) - 1}")
        rows = np.random.default_rng(7).permutation(len(train))
        return train[rows[self.held_out :]], train[rows[: self.held_out]]

    @abstractmethod
    def task_split(self) -> TaskSplit:
        """Return how the data set is divided into tasks."""

    @abstractmethod
    def module(self, world: World, heads: int) -> nn.Module:
        """Return a new network for `world` with `heads` heads, 1 or one per task."""

    def make_world(self, split: Split, num_envs: int, seed: int) -> World:
        if self.scenario_type not in ("class", "domain", "task"):
            raise ValueError(
                f"scenario_type is {self.scenario_type!r}; choose one of class, domain, task"
            )
        world = self._world(split, num_envs, None)
        if self.tasks is not None:  # the mixture needs task IDs, which only a world knows
            order = [self.task_id(world.tasks, key) for key in self.tasks]
            world = self._world(split, num_envs, order)
        return world

    def _world(self, split: Split, num_envs: int, order: list[int] | None) -> World:
        world: Any = make_vec(
            self.env_id,
            num_envs,
            data=self.loaded,
            task_split=self.task_split(),
            split=split,
            label_space="global" if self.scenario_type == "class" else "within_task",
            task_cue=self.scenario_type == "task",
            # one pass over the examples ends a test, whatever the length of its episodes
            episode_length=256 if split == "train" else 1,
            mixture=self.mixture(order),
            workers=self.workers if split == "train" else 0,
        )
        checked: World = world
        return checked

    def mixture(self, order: list[int] | None) -> Mixture:
        """Return how other data is mixed into each task's examples.

        Args:
            order: Task IDs in training order; None for the world's order.

        Raises:
            ValueError: If a setting is out of range.
        """
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; choose one of {', '.join(PRESETS)}")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; it must be 1 or more")
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; it must be 1 or more")
        if self.iterations is not None and self.gradual:
            raise ValueError(
                f"iterations is {self.iterations}; it must be null if gradual is above 0, which "
                "needs whole passes over the examples"
            )
        own = {name: getattr(self, name) for name in PRESETS[self.preset]}
        ratios: dict[str, Any] = {
            **PRESETS[self.preset],
            **{name: value for name, value in own.items() if value is not None},
        }
        returns = order is not None and len(set(order)) < len(order)
        if self.iterations is not None and returns:
            for name in ("blur_ratio", "other_task_ratio"):
                if ratios[name]:
                    raise ValueError(
                        f"{name} is {ratios[name]} and tasks holds a task several times, whose "
                        "visits are counted by whole passes; give epochs in place of iterations"
                    )
        return Mixture(**ratios, gradual=self.gradual, passes=self.epochs, order=order)

    def make_learner(self, world: World, seed: int) -> Learner:
        heads = len(world.tasks) if self.scenario_type == "task" else 1
        module = (
            self.module(world, heads)
            if self.network is None
            else own_network(self.network, world, heads)
        )
        module = module.to(self.training.find_device())
        learner = SupervisedLearner(module, world, self.training, self.make_optimizer(module))
        classes = [task.params.get("classes") for task in world.tasks]
        alike = classes[0] is not None and all(names == classes[0] for names in classes)
        if self.scenario_type == "class" and alike and len(classes) > 1:
            learner.notes = [
                *learner.notes,
                "all tasks have the same classes, so scenario_type class is the same as domain",
            ]
        return learner

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the module's weights."""
        optimizer = make_optimizer(self.optimizer, module.parameters(), self.training.learning_rate)
        if self.periods is None:
            return optimizer
        return NestedOptimizer(
            optimizer, levels_of(module) or levels_by_depth(module, self.periods)
        )

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.iterations is not None:
            unused["epochs"] = "iterations sets the amount of training"
        return unused

    def task_steps(self, world: World, task: int) -> int:
        return self.schedule_steps(world, [[task]])[0]

    def schedule_steps(self, world: World, phases: Sequence[Sequence[int]]) -> list[int]:
        if self.iterations is not None:
            return [self.iterations * self.batch_size * len(tasks) for tasks in phases]
        stream: Any = world.unwrapped  # type: ignore[attr-defined]
        visits: Counter[tuple[int, ...]] = Counter()
        steps = []
        for tasks in map(tuple, phases):
            steps.append(stream.visit_length(tasks, visits[tasks]))
            visits[tasks] += 1
        return steps

    def given(self, name: str, hub: str | None = None) -> str:
        """Return the source of the data.

        It is `data` if given, else the folder in EVERLOOP_DATA if that is set, else the Hub.

        Args:
            name: Name of the folder in EVERLOOP_DATA.
            hub: ID on the Hub; None if the data is not there.

        Raises:
            ValueError: If there is no such folder and no Hub ID.
        """
        if self.data is not None:
            return self.data
        if DATA not in os.environ and hub is not None:
            return hub
        folder = Path(os.environ.get(DATA, "")) / name
        if DATA not in os.environ or not folder.is_dir():
            place = f"{DATA}, which is {os.environ[DATA]}" if DATA in os.environ else DATA
            raise ValueError(
                f"{self.name} needs a data set: put a folder {name!r} into {place}, or give "
                "another one with --data"
            )
        return str(folder)
