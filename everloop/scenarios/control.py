"""Control of any registered Gymnasium environment, as a sequence of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch

from everloop.envs import EnvSequence, make_vec
from everloop.loop import Learner, World
from everloop.scenarios.algorithms import AgentSettings, Algorithm, Recipe
from everloop.scenarios.names import Factory, make_optimizer
from everloop.scenarios.scenario import Scenario, Split


@dataclass
class Control(Scenario):
    """Control of any registered environment, one task after another.

    Args:
        world: ID of a registered environment, such as CartPole-v1; module:id imports the module
            first. A world that has tasks of its own is used as it is.
        tasks: What distinguishes each task, such as [{"gravity": 9.8}, {"gravity": 20}]. An entry
            is an argument or an attribute of the environment, or one of id, name, observation,
            action and wrappers. For a world that has tasks of its own, names or ids in training
            order.
        schedule: Order of training. sequential is once in the given order, cyclic again and again,
            random each time in another order, and interleaved all tasks at once.
        cycles: How often the tasks are trained, 1 or more (cyclic and random only).
        steps: World steps of training each time that a task is trained, counted over all copies.
        copies: Copies of the world in training, 1 or more.
        episodes: Episodes of each evaluation of a task, 1 or more.
        algorithm: Learning algorithm: ppo, recurrent_ppo, dqn or sac. Only recurrent_ppo gives the
            agent a memory.
        learning_rate: Learning rate of the algorithm, above 0. By default Stable-Baselines3's.
        algorithm_settings: Settings of the algorithm in Stable-Baselines3's names, such as
            {"n_steps": 64, "gamma": 0.9}.
        agent: The agent's network.
        optimizer: Name of a torch optimizer, or the import path of your own. By default Adam.
        reset_optimizer: Forget the optimizers' state, such as Adam's moments, when a task begins.
        reset_buffer: Empty the replay buffer when a task begins (dqn and sac only).
        reset_entropy: Set the entropy coefficient to its initial value when a task begins (sac
            only).
        task_cue: Show the task to the agent, as a modality of the observation. Otherwise the agent
            must infer it.
        feedback: Show the previous action and reward to the agent.
        pad: Fill up the spaces of the tasks to one that holds them all, where they differ.
        vectorization: How the copies are stepped: sync one after the other, async each in a process
            of its own. The results are the same. async pays off if a step takes a millisecond or
            more.
        max_episode_steps: Steps after which an episode is truncated. By default the environment's
            own limit.
    """

    name: ClassVar[str] = "control"
    summary: ClassVar[str] = (
        "control: any registered Gymnasium environment as a sequence of tasks; PPO, RecurrentPPO, "
        "DQN or SAC"
    )
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ewc": {"strength": 1.0},
        "replay": {"strength": 1.0, "capacity": 1000, "batch_size": 32},
    }
    tasks: list[Any] | None = None
    world: str = "CartPole-v1"
    schedule: Literal["sequential", "cyclic", "random", "interleaved"] = "sequential"
    cycles: int = 1
    steps: int = 50_000
    copies: int = 8
    episodes: int = 10
    algorithm: Algorithm = "ppo"
    learning_rate: float | None = None
    algorithm_settings: dict[str, Any] = field(default_factory=dict)
    agent: AgentSettings = field(default_factory=AgentSettings)
    optimizer: Factory | None = None
    reset_optimizer: bool = False
    reset_buffer: bool = True
    reset_entropy: bool = False
    task_cue: bool = True
    feedback: bool = False
    pad: bool = False
    vectorization: Literal["sync", "async"] = "sync"
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "copies", "episodes", "cycles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.world_has_tasks and any(isinstance(task, Mapping) for task in self.tasks or []):
            raise ValueError(
                f"{self.world} has tasks of its own; give tasks as their names or numbers"
            )

    @property
    def world_has_tasks(self) -> bool:
        """True if the environment is a world with tasks of its own."""
        return has_tasks(self.world)

    @property
    def num_envs(self) -> int:
        return self.copies

    @property
    def eval_envs(self) -> int:
        return self.episodes

    @property
    def more_training(self) -> str:
        return "raise --steps"

    def make_world(self, split: Split, num_envs: int, seed: int) -> World:
        if self.world_has_tasks:
            made: Any = make_vec(self.world, num_envs, self.feedback, self.vectorization)
        else:
            made = make_vec(
                "everloop/Sequence-v0",
                num_envs,
                self.feedback,
                self.vectorization,
                env=self.world,
                tasks=self.tasks or [{}],
                pad=self.pad,
                task_cue=self.task_cue,
                max_episode_steps=self.max_episode_steps,
            )
        world: World = made
        return world

    def world_notes(self) -> list[str]:
        if self.world_has_tasks:
            return []
        env = EnvSequence(self.world, self.tasks or [{}], self.pad)
        with closing(env):
            names = env.without_effect()
        return [
            f"task {name} plays like {self.world} as it is: 200 random steps show no difference"
            for name in names
        ]

    def order(self, world: World, seed: int) -> list[list[int]]:
        named = self.tasks if self.world_has_tasks and self.tasks else range(len(world.tasks))
        ids = [self.task_id(world.tasks, str(key)) for key in named]
        if self.schedule == "interleaved":
            return [ids]
        if self.schedule == "sequential":
            return [[task] for task in ids]
        rng = np.random.default_rng(seed)
        rounds = [
            rng.permutation(ids).tolist() if self.schedule == "random" else ids
            for _ in range(self.cycles)
        ]
        return [[task] for one in rounds for task in one]

    def task_steps(self, world: World, task: int) -> int:
        return self.steps

    def make_learner(self, world: World, seed: int) -> Learner:
        settings = dict(self.algorithm_settings)
        if self.learning_rate is not None:
            settings["learning_rate"] = self.learning_rate
        recipe = Recipe(
            self.algorithm,
            settings,
            self.agent,
            self.reset_optimizer,
            self.reset_buffer,
            self.reset_entropy,
            self._optimizer(),
        )
        return recipe.learner(world, seed)

    def _optimizer(self) -> Callable[..., torch.optim.Optimizer] | None:
        return None if self.optimizer is None else partial(make_optimizer, self.optimizer)

    def without_effect(self) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if self.schedule in ("sequential", "interleaved"):
            reasons["cycles"] = f"the schedule is {self.schedule}"
        if self.algorithm in ("ppo", "recurrent_ppo"):
            reasons["reset_buffer"] = "only dqn and sac have a replay buffer"
        if self.algorithm != "sac":
            reasons["reset_entropy"] = "only sac uses it"
        if self.algorithm != "recurrent_ppo":
            reasons["agent.hidden_size"] = "only recurrent_ppo uses it"
        if self.world_has_tasks:
            own = ["pad", "task_cue", "max_episode_steps"]
            reasons |= dict.fromkeys(own, f"{self.world} has tasks of its own")
        return reasons


def has_tasks(env_id: str) -> bool:
    """Return whether a registered environment is a world with tasks of its own.

    False for an unknown one, which is refused when it is made.
    """
    try:
        spec = gym.spec(env_id)
        entry = spec.vector_entry_point or spec.entry_point
        made = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    except (gym.error.Error, ImportError, AttributeError):
        return False
    return hasattr(made, "reference") and hasattr(made, "metric")
