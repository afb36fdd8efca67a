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
from gymnasium import spaces
from torch import nn

from everloop.agents import Classifier, OwnBackbone, levels_of
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
    """The user's network, with a linear head for each of `heads` tasks.

    Raises:
        ValueError: In one line, where it can't be made or can't read what the world shows.
    """
    shown = world.single_observation_space
    assert isinstance(shown, spaces.Dict), "a stream shows modalities by name"
    modality, space = next((n, s) for n, s in shown.items() if n in ("image", "tokens"))
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
    except Exception as error:  # the network is the user's own: anything can happen in it
        raise ValueError(
            f"network {factory.path} can't be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"network {factory.path} makes {type(net).__name__}, which is no torch module"
        )
    outputs = likelihood_for(actions).size() // (shape[0] if tags else 1)
    return Classifier(OwnBackbone(net, shape, per_token=tags), outputs, modality, heads)


@dataclass
class StreamScenario(Scenario):
    """A data set as a sequence of tasks.

    The three scenario types are those of van de Ven, Tuytelaars & Tolias 2022.

    Args:
        scenario_type: Class-, domain- or task-incremental learning. class: predict among the
            classes of all tasks, without the task ID. domain: predict among the classes of a task,
            without the task ID. task: the same with the task ID, and with a head for each task.
        preset: How much other data is mixed into a task's examples: easy (none), moderate or hard.
            moderate: 10 % from the next task, 5 % from past tasks, 5 % out of distribution. hard:
            twice as much.
        blur_ratio: Share of examples from the next task, from 0 to 1; the preset's if none. The
            three ratios must sum to less than 1.
        other_task_ratio: Share of examples from past tasks, from 0 to 1; the preset's if none.
        ood_ratio: Share of examples altered out of distribution, from 0 to 1; the preset's if none.
        gradual: Share of a visit to a task that blends into its neighbours, from 0 to 1; 0 is
            abrupt. At the boundary every second example is the neighbour's.
        epochs: Passes over each task's examples, 1 or more; 1 is single-pass. The last batch is
            filled up from the next pass.
        iterations: Training batches for each task, 1 or more; if none, epochs decide. It needs
            gradual 0.
        batch_size: Examples in each training batch, 1 or more.
        training: Learning rate, precision, device and other options of training.
        optimizer: Optimizer, by its name in torch (adamw, sgd) or path; its settings are
            optimizer.KEY. Its learning rate is training.learning_rate.
        network: Torch module of your own, as package.module:Class; its settings are network.KEY. It
            turns images (N, C, H, W), floats from 0 to 1, or token IDs (N, L) into features; the
            heads are added. If its class has a required argument, it gets the shape of one input,
            of images (C, H, W).
        periods: Nested learning: steps between updates of each level of layers; every step if none.
            Each is 1 or more. Levels are the network's continuum memories if it has any, else its
            layers from the last to the first (NestedOptimizer).
        workers: Threads that prepare upcoming examples while the network learns, 0 or more.
        held_out: Training examples held out to replace the test examples; 0 uses the test examples.
            For choosing settings. The same examples for every seed.
        data: Data set: a folder, or owner/name on the Hugging Face Hub. If none, the scenario's
            folder in EVERLOOP_DATA if that is set, else its data set on the Hub if it has one.
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
    consolidation_steps: int = 8

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
        """The data set, (train, test)."""

    @cached_property
    def loaded(self) -> tuple[Examples, Examples]:
        """`examples()`, once for all worlds of this scenario; the test's are replaced if some are
        held out.
        """
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
            raise ValueError(f"held_out is {self.held_out}, allowed: 0 to {len(train) - 1}")
        rows = np.random.default_rng(7).permutation(len(train))
        return train[rows[self.held_out :]], train[rows[: self.held_out]]

    @abstractmethod
    def task_split(self) -> TaskSplit:
        """How it becomes tasks."""

    @abstractmethod
    def module(self, world: World, heads: int) -> nn.Module:
        """A fresh network with a head, or with a head for each of `heads` tasks."""

    def world(self, split: Split, num_envs: int, seed: int) -> World:
        if self.scenario_type not in ("class", "domain", "task"):
            raise ValueError(
                f"scenario_type is {self.scenario_type!r}, allowed: class, domain, task"
            )
        world = self._world(split, num_envs, None)
        if (
            self.tasks is not None
        ):  # now that tasks have numbers, the mixture can be given their order
            world = self._world(
                split, num_envs, [self._find(world.tasks, key) for key in self.tasks]
            )
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
            episode_length=256
            if split == "train"
            else 1,  # a test is over after one pass, not after an episode
            mixture=self.mixture(order),
            workers=self.workers if split == "train" else 0,
        )
        checked: World = world
        return checked

    def mixture(self, order: list[int] | None) -> Mixture:
        """What gets among a task's examples."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, allowed: {', '.join(PRESETS)}")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}, allowed: 1 or more")
        if self.iterations is not None and (self.iterations < 1 or self.gradual):
            allowed = (
                "1 or more"
                if self.iterations < 1
                else "none where gradual is above 0, which is a share of whole passes"
            )
            raise ValueError(f"iterations is {self.iterations}, allowed: {allowed}")
        own = {name: getattr(self, name) for name in PRESETS[self.preset]}
        ratios: dict[str, Any] = {
            **PRESETS[self.preset],
            **{name: value for name, value in own.items() if value is not None},
        }
        return Mixture(**ratios, gradual=self.gradual, passes=self.epochs, order=order)

    def learner(self, world: World, seed: int) -> Learner:
        heads = len(world.tasks) if self.scenario_type == "task" else 1
        module = (
            self.module(world, heads)
            if self.network is None
            else own_network(self.network, world, heads)
        )
        module = module.to(self.training.find_device())
        return SupervisedLearner(module, world, self.training, self.make_optimizer(module))

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """What trains the module's weights."""
        optimizer = make_optimizer(self.optimizer, module.parameters(), self.training.learning_rate)
        if self.periods is None:
            return optimizer
        return NestedOptimizer(
            optimizer, levels_of(module) or levels_by_depth(module, self.periods)
        )

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.iterations is not None:
            unused["epochs"] = "iterations says how much is trained"
        return unused

    def task_steps(self, world: World, task: int) -> int:
        if self.iterations is not None:
            return self.iterations * self.batch_size
        examples = world.examples(task)
        assert examples is not None, "a stream is a data set"
        return self.epochs * examples

    def given(self, name: str, hub: str | None = None) -> str:
        """Where the data is: `data` if given, else the folder `name` in EVERLOOP_DATA if that is
        set, else the Hub.

        Raises ValueError where nothing says where.
        """
        if self.data is not None:
            return self.data
        if DATA not in os.environ and hub is not None:
            return hub
        folder = Path(os.environ.get(DATA, "")) / name
        if DATA not in os.environ or not folder.is_dir():
            place = f"{DATA}, which is {os.environ[DATA]}" if DATA in os.environ else DATA
            raise ValueError(
                f"{self.name} needs a data set: put a folder {name} into {place}, or name it with "
                "--data"
            )
        return str(folder)
