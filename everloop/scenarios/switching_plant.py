"""Control of a simulated plant with Stable-Baselines3; dynamics and target switch by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from everloop.agents import Agent
from everloop.envs import make_vec
from everloop.loop import Learner, World, likelihood_for
from everloop.scenarios.names import Factory, make_optimizer
from everloop.scenarios.scenario import Scenario, Split

SEQUENCE = 16  # length in steps of a recurrent policy's stored examples
SAC = {"buffer_size": 100_000, "learning_starts": 1000, "batch_size": 128, "tau": 0.02}


@dataclass
class SwitchingPlant(Scenario):
    """Control of the simulated plant `everloop/Plant-v0`, one task after another.

    Args:
        num_tasks: Number of tasks, 1 or more, each with its own dynamics and target.
        steps: World steps of training for each task, counted over all copies, 1 or more.
        task_cue: Show the task ID as a modality of the observation. Otherwise the agent must infer
            the task from the plant's response.
        algorithm: Learning algorithm: ppo or sac. sac empties its replay buffer when a task begins.
        recurrent: Give the agent a recurrent memory. By default ppo has one (RecurrentPPO). sac has
            none and can't have one.
        learning_rate: Learning rate of the algorithm, above 0.
        n_epochs: Passes over each rollout, 1 or more (ppo only).
        batch_size: Steps in a minibatch, 2 or more (ppo only).
        n_steps: Steps of each copy in a rollout, 16 or more (ppo only). A recurrent agent needs a
            multiple of 16.
        ent_coef: Weight of the entropy bonus (ppo only).
        gamma: Discount factor, from 0 to 1.
        gae_lambda: Lambda of generalized advantage estimation, from 0 to 1 (ppo only).
        gradient_steps: Updates after each step of all copies, 1 or more (sac only).
        optimizer: Name of a torch optimizer, such as adamw or sgd, or the import path of your
            own. By default Adam. Its arguments are the settings optimizer.NAME.
        reset_optimizer: Forget the optimizers' state, such as Adam's moments, when a task begins.
        reset_entropy: Set the entropy coefficient to its initial value when a task begins (sac
            only).
        token_size: Features of each token in the agent, a multiple of 4.
        hidden_size: Features of the agent's recurrent memory, 1 or more (recurrent agents only).
        normalize: Normalise the vectors that the agent sees: none, running or first-task. They are
            scaled by their mean and variance in training so far, or in the first task only.
        world_seed: Seed for the plants, 0 or more. By default the run's seed.
        fresh_rollouts: Extra steps of each copy at a task's end for strategies, 0 or more. They
            take the place of the task's own experience, also for monitors, and count as steps. A
            recurrent agent needs a multiple of 16.
    """

    name: ClassVar[str] = "switching-plant"
    summary: ClassVar[str] = (
        "control: a simulated plant with different dynamics and targets in each of 3 tasks; PPO or "
        "SAC"
    )
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ewc": {"strength": 1.0},
        "replay": {"strength": 1.0, "capacity": 1000, "batch_size": 32},
    }
    num_tasks: int = 3
    steps: int = 32_768
    task_cue: bool = True
    algorithm: Literal["ppo", "sac"] = "ppo"
    recurrent: bool | None = None
    learning_rate: float = 1e-3
    n_epochs: int = 5
    batch_size: int = 512
    n_steps: int = 64
    ent_coef: float = 0.0
    gamma: float = 0.9
    gae_lambda: float = 0.9
    gradient_steps: int = 1
    optimizer: Factory | None = None
    reset_optimizer: bool = False
    reset_entropy: bool = False
    token_size: int = 64
    hidden_size: int = 128
    normalize: Literal["none", "running", "first-task"] = "none"
    world_seed: int | None = None
    fresh_rollouts: int = 0

    @property
    def more_training(self) -> str:
        return "raise --steps"

    @property
    def rollout_steps(self) -> int:
        return self.fresh_rollouts

    def make_world(self, split: Split, num_envs: int, seed: int) -> World:
        world_seed = seed if self.world_seed is None else self.world_seed
        if world_seed < 0:
            raise ValueError(f"world_seed is {world_seed}; it must be 0 or more")
        world: Any = make_vec(
            "everloop/Plant-v0",
            num_envs,
            feedback=True,
            num_tasks=self.num_tasks,
            task_cue=self.task_cue,
            world_seed=world_seed,
        )
        typed: World = world
        return typed

    def make_learner(self, world: World, seed: int) -> Learner:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name, least in (
            ("n_steps", SEQUENCE),
            ("n_epochs", 1),
            ("batch_size", 2),
            ("gradient_steps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.algorithm == "sac":
            if self.recurrent:
                raise ValueError("recurrent is True, which sac does not support; leave it out")
            return self._sac(world, seed)
        return self._ppo(world, seed, recurrent=self.recurrent is not False)

    def _agent(self, observation_space: Any, outputs: int, **parameters: Any) -> Agent:
        return Agent(
            observation_space,
            outputs,
            token_size=self.token_size,
            attention_heads=4,
            hidden_size=self.hidden_size,
            normalize=self.normalize,
            **parameters,
        )

    def _ppo(self, world: World, seed: int, recurrent: bool) -> Learner:
        from sb3_contrib import RecurrentPPO
        from stable_baselines3 import PPO

        from everloop.loop.sb3.on_policy import SB3Learner

        def network(observation_space: Any, action_space: Any) -> Agent:
            outputs = likelihood_for(action_space).size()
            return self._agent(
                observation_space,
                outputs,
                value_head=True,
                recurrent=recurrent,
                prediction_scale=0.01,
            )

        parameters = {
            "learning_rate": self.learning_rate,
            "n_epochs": self.n_epochs,
            "batch_size": self.batch_size,
            "n_steps": self.n_steps,
            "ent_coef": self.ent_coef,
            "gamma": self.gamma,
            "gae_lambda": self.gae_lambda,
        }
        algorithm = RecurrentPPO if recurrent else PPO
        return SB3Learner(
            world,
            network,
            algorithm,
            parameters,
            sequence_length=SEQUENCE if recurrent else 1,
            reset_optimizer=self.reset_optimizer,
            seed=seed,
            device="cpu",
            optimizer=self._optimizer(),
        )

    def _sac(self, world: World, seed: int) -> Learner:
        from everloop.loop.sb3.off_policy import SACLearner

        def actor(observation_space: Any, action_space: Any) -> Agent:
            return self._agent(
                observation_space, 2 * action_space.shape[0], recurrent=False, prediction_scale=0.01
            )

        def critic(observation_space: Any) -> Agent:
            return self._agent(observation_space, 1, recurrent=False)

        parameters = SAC | {
            "learning_rate": self.learning_rate,
            "gamma": self.gamma,
            "gradient_steps": self.gradient_steps,
        }
        return SACLearner(
            world,
            actor,
            critic,
            parameters,
            reset_optimizer=self.reset_optimizer,
            reset_entropy=self.reset_entropy,
            seed=seed,
            device="cpu",
            optimizer=self._optimizer(),
        )

    def without_effect(self) -> dict[str, str]:
        if self.algorithm == "sac":
            unused = ["n_epochs", "batch_size", "n_steps", "ent_coef", "gae_lambda"]
            reasons = dict.fromkeys(unused, "only algorithm ppo uses it")
        else:
            unused = ["gradient_steps", "reset_entropy"]
            reasons = dict.fromkeys(unused, "only algorithm sac uses it")
        if self.algorithm == "sac" or self.recurrent is False:
            reasons["hidden_size"] = "only a recurrent agent uses it"
        if self.fresh_rollouts:
            reasons["consolidation_examples"] = "fresh rollouts are used as a whole"
        return reasons

    def _optimizer(self) -> Callable[..., torch.optim.Optimizer] | None:
        return None if self.optimizer is None else partial(make_optimizer, self.optimizer)

    def task_steps(self, world: World, task: int) -> int:
        return self.steps
