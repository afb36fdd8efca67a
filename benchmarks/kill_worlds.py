"""Scenarios for the kill test: digits with any network, DQN, and a world without a state."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from everloop.agents import Agent
from everloop.envs import Examples, SplitClasses, TaskSplit
from everloop.envs.data import digits
from everloop.envs.wrapper import TaskVectorWrapper
from everloop.loop import Learner
from everloop.loop.sb3.off_policy import DQNLearner
from everloop.scenarios import SwitchingPlant
from everloop.scenarios.images import ImageScenario


class Switches(TaskVectorWrapper):
    """A plant whose actions each push one control up or down."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        controls = env.single_action_space.shape[0]
        self.pushes = np.concatenate([np.eye(controls), -np.eye(controls)]).astype(np.float32)
        self.single_action_space = spaces.Discrete(len(self.pushes))
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(self, actions: Any) -> Any:
        return self.env.step(self.pushes[actions])


class Closed(TaskVectorWrapper):
    """A plant that can't give its state."""

    def state_dict(self) -> None:
        return None


@dataclass
class Digits(ImageScenario):
    """Split digits with the built-in networks for images."""

    name = "digits"
    summary = "split digits with the built-in networks for images"

    def examples(self) -> tuple[Examples, Examples]:
        return digits()

    def task_split(self) -> TaskSplit:
        return SplitClasses(2)


@dataclass
class DQNPlant(SwitchingPlant):
    """DQN on the switching plant."""

    name = "dqn-plant"
    summary = "DQN on the switching plant"

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        return Switches(super().make_world(split, num_envs, seed))

    def make_learner(self, world: Any, seed: int) -> Learner:
        def network(observation_space: Any, action_space: Any) -> Agent:
            return self._agent(observation_space, int(action_space.n), recurrent=False)

        parameters = {"buffer_size": 2000, "learning_starts": 100, "train_freq": 4}
        return DQNLearner(world, network, parameters, seed=seed, device="cpu")


@dataclass
class ClosedPlant(SwitchingPlant):
    """PPO on a plant that can't give its state."""

    name = "closed-plant"
    summary = "PPO on a plant that can't give its state"

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        plant: Any = super().make_world(split, num_envs, seed)
        return Closed(plant)
