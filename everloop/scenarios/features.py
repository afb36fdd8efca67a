"""Your own vectors as a stream: tables, sensors, or embeddings computed beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from everloop.agents import Agent, Classifier, FeatureMLP
from everloop.envs import ByColumn, Examples, SplitClasses, TaskSplit
from everloop.envs.data import load_features
from everloop.loop import World, likelihood_for
from everloop.scenarios.stream import StreamScenario


@dataclass
class Features(StreamScenario):
    """Your own labelled vectors, in groups of classes or with one task per domain.

    Args:
        data: File with the vectors, .csv or .npz. Every fifth example of a class is for testing,
            unless an .npz file has arrays x_test and y_test besides x and y.
        label: Column of a .csv file that holds the labels.
        domain: Column, or array of an .npz file, each of whose values is a task. By default tasks
            are groups of classes.
        ignore: Columns of a .csv file to leave out. All others must hold numbers.
        classes_per_task: Classes in each task, 1 or more. It must divide the number of classes. By
            default the smallest number above 1 that makes several tasks, or 1 if there is none.
        class_seed: Seed for shuffling the classes before the split. By default they are sorted.
        groups: Classes of each task by name, or by number from 0, such as [[0,1,2,3],[4,5]]. It
            replaces classes_per_task and class_seed. A class may be in several groups or in none.
        architecture: Name of a built-in network; the setting network replaces it with your own. mlp
            is fully connected. agent has an attention layer, as in control.
        width: Units of each hidden layer of mlp, or size of the agent's token, 1 or more.
        layers: Number of hidden layers of mlp, 0 or more.
        normalize: How to normalise the vectors by their mean and variance: none, running or
            first-task. running is over all training so far, first-task over the first task only.
    """

    name: ClassVar[str] = "features"
    summary: ClassVar[str] = (
        "feature stream: your own vectors from a table, in groups of classes or by domain"
    )
    needs: ClassVar[str] = "--data FILE.csv --label COLUMN, or --data FILE.npz with arrays x and y"
    env_id: ClassVar[str] = "everloop/FeatureStream-v0"

    epochs: int = 10
    batch_size: int = 32
    label: str = "label"
    domain: str | None = None
    ignore: list[str] = field(default_factory=list)
    classes_per_task: int | None = None
    class_seed: int | None = None
    groups: list[list[str]] | None = None
    architecture: Literal["mlp", "agent"] = "mlp"
    width: int = 100
    layers: int = 2
    normalize: Literal["none", "running", "first-task"] = "running"

    def examples(self) -> tuple[Examples, Examples]:
        if self.data is None:
            raise ValueError(f"features needs data: give {self.needs}")
        columns = [] if self.domain is None else [self.domain]
        return load_features(self.data, label=self.label, columns=columns, ignore=self.ignore)

    def task_split(self) -> TaskSplit:
        if self.domain is not None:
            return ByColumn(self.domain)
        count = len(self.loaded[0].classes)
        size = self.classes_per_task
        if size is None:
            size = next((n for n in range(2, count // 2 + 1) if count % n == 0), 1)
        smallest = size if self.groups is None else min(map(len, self.groups), default=0)
        if smallest == 1 and self.scenario_type != "class":
            raise ValueError(
                f"scenario_type is {self.scenario_type}, but there is a task of 1 class, in which "
                "nothing is to be told apart; set groups, classes_per_task or domain"
            )
        return SplitClasses(size, self.class_seed, self.groups)

    def module(self, world: World, heads: int) -> nn.Module:
        outputs = likelihood_for(world.single_action_space).size()
        for name, least in (("width", 1), ("layers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.architecture == "agent":
            return Agent(
                world.single_observation_space,
                outputs,
                head_per_task=heads > 1,
                token_size=self.width,
                normalize=self.normalize,
            )
        if self.architecture != "mlp":
            raise ValueError(f"architecture is {self.architecture!r}; choose mlp or agent")
        size = world.single_observation_space["features"].shape[0]  # type: ignore[index]
        backbone = FeatureMLP(size, self.layers * [self.width], self.normalize)
        return Classifier(backbone, outputs, "features", heads)

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.domain is not None:
            unused |= dict.fromkeys(
                ["classes_per_task", "class_seed", "groups"], "each value of domain is a task"
            )
        elif self.groups is not None:
            unused |= dict.fromkeys(["classes_per_task", "class_seed"], "groups replaces it")
        if self.data is not None and Path(self.data).suffix.lower() == ".npz":
            unused |= dict.fromkeys(["label", "ignore"], "it is only for .csv files")
        if self.network is not None:
            unused |= dict.fromkeys(
                ["architecture", "width", "layers", "normalize"], "network replaces it"
            )
        elif self.architecture == "agent":
            unused["layers"] = "architecture agent has a fixed number of layers"
        return unused
