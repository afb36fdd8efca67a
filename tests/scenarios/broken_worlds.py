"""Scenarios whose numbers break in the middle of a run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from everloop.envs import TaskVectorWrapper
from everloop.loop import Batch, SupervisedLearner
from everloop.scenarios import SplitDigits, SwitchingPlant


class PoisonedAfter(TaskVectorWrapper):
    """The first sensor fails after some steps."""

    def __init__(self, env: Any, steps: int) -> None:
        super().__init__(env)
        self.left = steps

    def step(self, actions: Any) -> Any:
        obs, *rest = self.env.step(actions)
        self.left -= 1
        if self.left < 0:
            obs["sensor_0"][0, 0] = np.nan
        return obs, *rest


@dataclass
class FailingSensor(SwitchingPlant):
    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        world = super().make_world(split, num_envs, seed)
        return PoisonedAfter(world, 70) if split == "train" else world


class ExplodingLearner(SupervisedLearner):
    def loss_of(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return super().loss_of(outputs, batch) * (torch.nan if self.steps >= 640 else 1.0)


@dataclass
class ExplodingLoss(SplitDigits):
    def make_learner(self, world: Any, seed: int) -> Any:
        plain = super().make_learner(world, seed)
        return ExplodingLearner(plain.module, world)


@dataclass
class BrokenWorld(SwitchingPlant):
    """A mistake in the code of a world."""

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        return (
            super().make_world(split, num_envs, seed)
            if split == "train"
            else np.zeros(3) @ np.ones(2)
        )


@dataclass
class BadSetting(SwitchingPlant):
    """A wrong value that the library refuses."""

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        return super().make_world(split, 0, seed)
