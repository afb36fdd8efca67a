"""Split digits: scikit-learn's handwritten digits, two classes per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from everloop.agents import Agent
from everloop.envs import Examples, SplitClasses, TaskSplit
from everloop.envs.data import digits
from everloop.loop import Training, World, likelihood_for
from everloop.scenarios.stream import StreamScenario


@dataclass
class SplitDigits(StreamScenario):
    """The digits of scikit-learn in 5 tasks of 2 classes, learned by the agent.

    Args:
        groups: Digits of each task, such as [[0,1,2,3],[4,5]]. By default 2 digits in each. A digit
            may be in several groups or in none.
        data: No effect here, because the digits come with scikit-learn.
    """

    name: ClassVar[str] = "split-digits"
    summary: ClassVar[str] = (
        "image stream: scikit-learn's digits, 5 tasks of 2 classes; needs no download"
    )
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "l2": {"strength": 1.0},
        "ewc": {"strength": 1e3},  # 1e5 is better alone, but costs 28 points beside replay
        "ewc_kfac": {"strength": 1e5},
        "si": {"strength": 1e4},
        "mas": {"strength": 3.0},
        "rwalk": {"strength": 100.0},
        "lwf": {"strength": 0.25},
        "replay": {"strength": 1.0, "capacity": 500, "batch_size": 32},
    }
    epochs: int = 10
    batch_size: int = 32
    training: Training = field(default_factory=Training)
    eval_tasks: Literal["all", "seen"] = "all"

    groups: list[list[str]] | None = None

    @property
    def eval_envs(self) -> int:
        return 72

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | {"data": "the digits come with scikit-learn"}

    def examples(self) -> tuple[Examples, Examples]:
        return digits()

    def task_split(self) -> TaskSplit:
        return SplitClasses(2, groups=self.groups)

    def module(self, world: World, heads: int) -> nn.Module:
        outputs = likelihood_for(world.single_action_space).size()
        return Agent(world.single_observation_space, outputs, head_per_task=heads > 1)
