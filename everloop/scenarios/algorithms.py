"""The learners of control scenarios: an algorithm of Stable-Baselines3 around the agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from everloop.agents import Agent
from everloop.loop import Learner, World, likelihood_for

Algorithm = Literal["ppo", "recurrent_ppo", "dqn", "sac"]
SEQUENCE = 16
"""Steps of an example of the recurrent agent that strategies store."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95},
    "recurrent_ppo": {
        "n_steps": 128, "batch_size": 256, "n_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95,
    },
    "dqn": {
        "buffer_size": 50_000, "learning_starts": 1000, "batch_size": 64, "train_freq": 4,
        "target_update_interval": 500, "exploration_fraction": 0.3, "gamma": 0.99,
    },
    "sac": {
        "buffer_size": 100_000, "learning_starts": 1000, "batch_size": 128, "tau": 0.02,
        "gamma": 0.99,
    },
}  # fmt: skip
"""Algorithm -> settings that differ from Stable-Baselines3's own, or that matter most."""


@dataclass(frozen=True)
class AgentSettings:
    """The agent's network.

    Args:
        token_size: Features of each token, a multiple of 4.
        hidden_size: Features of the recurrent memory, 1 or more (recurrent_ppo only).
        normalize: Normalise the vectors that the agent sees: none, running or first-task. They are
            scaled by their mean and variance in training so far, or in the first task only.
    """

    token_size: int = 64
    hidden_size: int = 128
    normalize: Literal["none", "running", "first-task"] = "running"


@dataclass(frozen=True)
class Recipe:
    """An algorithm with its settings, from which a learner is made.

    Args:
        algorithm: The algorithm.
        settings: Keyword arguments of Stable-Baselines3's class.
        agent: Settings of the network.
        reset_optimizer: Forget the optimizers' state when a task begins.
        reset_buffer: Empty the replay buffer when a task begins (dqn and sac).
        reset_entropy: Set the entropy coefficient to its initial value when a task begins (sac).
        optimizer: Function from parameters and `lr` to an optimizer; None for Adam.
    """

    algorithm: Algorithm
    settings: Mapping[str, Any] = field(default_factory=dict)
    agent: AgentSettings = AgentSettings()
    reset_optimizer: bool = False
    reset_buffer: bool = True
    reset_entropy: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] | None = None

    def learner(self, world: World, seed: int) -> Learner:
        """Return a new learner for `world`.

        Raises:
            ValueError: In one line, if the algorithm does not fit the world or a setting is wrong.
        """
        try:
            return self._make(world, seed)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"{self.algorithm} can't be made with {dict(self.settings)}: {error}; "
                "algorithm_settings are those of Stable-Baselines3"
            ) from error

    def _make(self, world: World, seed: int) -> Learner:
        # Imported here, because Stable-Baselines3 is slow to import and streams don't need it.
        from sb3_contrib import RecurrentPPO
        from stable_baselines3 import PPO

        from everloop.loop.sb3.off_policy import DQNLearner, SACLearner
        from everloop.loop.sb3.on_policy import SB3Learner

        shared: dict[str, Any] = {
            "seed": seed,
            "device": "cpu",
            "reset_optimizer": self.reset_optimizer,
            "optimizer": self.optimizer,
        }
        settings = DEFAULTS[self.algorithm] | dict(self.settings)
        if self.algorithm in ("ppo", "recurrent_ppo"):
            recurrent = self.algorithm == "recurrent_ppo"
            return SB3Learner(
                world,
                lambda seen, acts: self._network(
                    seen, likelihood_for(acts).size(), recurrent, value_head=True
                ),
                RecurrentPPO if recurrent else PPO,
                settings,
                sequence_length=SEQUENCE if recurrent else 1,
                **shared,
            )
        shared["reset_buffer"] = self.reset_buffer

        def policy(seen: spaces.Dict, acts: spaces.Space[Any]) -> Agent:
            return self._network(seen, likelihood_for(acts).size())

        if self.algorithm == "dqn":
            return DQNLearner(world, policy, settings, **shared)
        return SACLearner(
            world,
            # the mean and the standard deviation of each dimension
            lambda seen, acts: self._network(seen, 2 * int(np.prod(acts.shape or ()))),
            lambda seen: self._network(seen, 1),
            settings,
            reset_entropy=self.reset_entropy,
            **shared,
        )

    def _network(
        self,
        seen: spaces.Dict,
        outputs: int,
        recurrent: bool = False,
        value_head: bool = False,
    ) -> Agent:
        return Agent(
            seen,
            outputs,
            token_size=self.agent.token_size,
            attention_heads=4,
            hidden_size=self.agent.hidden_size,
            normalize=self.agent.normalize,
            recurrent=recurrent,
            value_head=value_head,
            prediction_scale=0.01 if value_head else 1.0,
        )
