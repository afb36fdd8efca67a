"""How strategies see the networks of Stable-Baselines3's own policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from einops import rearrange
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from torch import Tensor, nn

from everloop.loop.likelihood import (
    Bernoulli,
    Categorical,
    FreeGaussian,
    Likelihood,
    SquashedGaussian,
    TokenCategorical,
)


class View(ABC):
    """The network of an algorithm that strategies protect.

    Attributes:
        module: The network.
        optimizer: Its optimizer.
        likelihood: The distribution over actions that its outputs parametrize.
        recurrent: True if it has a memory.
        on_policy: True if the algorithm has a rollout buffer, False if it has a replay buffer.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    likelihood: Likelihood
    recurrent = False
    on_policy = True

    @abstractmethod
    def predict(self, module: Any, obs: Any, start: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return outputs (T, B, P) and values (T, B), or None without a value function.

        Args:
            module: The network, or a copy of it.
            obs: Observations as SB3's policies take them, (T * B, ...), time first.
            start: bool (T, B), True where an episode begins.
        """


class ActorCritic(View):
    """The policy of PPO, A2C or RecurrentPPO, with its value function."""

    def __init__(self, algorithm: Any) -> None:
        policy = algorithm.policy
        self.module, self.optimizer = policy, policy.optimizer
        self.recurrent = isinstance(algorithm, RecurrentPPO)
        self.likelihood = _likelihood(algorithm.action_space)

    def predict(self, module: Any, obs: Any, start: Tensor) -> tuple[Tensor, Tensor | None]:
        steps, examples = start.shape
        if not self.recurrent:
            distribution, values = module.get_distribution(obs), module.predict_values(obs)
            return _shaped(_parameters(distribution), start), values.reshape(start.shape)
        # SB3's sequences have the batch first.
        obs = _mapped(obs, lambda x: rearrange(x, "(t b) ... -> (b t) ...", b=examples))
        starts = rearrange(start, "t b -> (b t)").float()
        actor, critic = module.lstm_actor, module.lstm_critic or module.lstm_actor
        memory = [
            2 * (torch.zeros(lstm.num_layers, examples, lstm.hidden_size, device=start.device),)
            for lstm in (actor, critic)
        ]
        distribution, _ = module.get_distribution(obs, memory[0], starts)
        values = module.predict_values(obs, memory[1], starts)
        prediction = rearrange(_parameters(distribution), "(b t) p -> t b p", t=steps)
        return prediction, rearrange(values, "(b t) 1 -> t b", t=steps)


class QValues(View):
    """The Q-network of DQN, as the Boltzmann policy softmax(Q / temperature)."""

    on_policy = False

    def __init__(self, algorithm: Any, temperature: float) -> None:
        policy = algorithm.policy
        self.module, self.optimizer = policy.q_net, policy.optimizer
        self.likelihood = Categorical(int(algorithm.action_space.n), temperature)

    def predict(self, module: Any, obs: Any, start: Tensor) -> tuple[Tensor, Tensor | None]:
        return _shaped(module(obs), start), None


class SACActor(View):
    """The actor of SAC."""

    on_policy = False

    def __init__(self, algorithm: Any) -> None:
        space = algorithm.action_space
        self.module, self.optimizer = algorithm.actor, algorithm.actor.optimizer
        self.likelihood = SquashedGaussian(space.low, space.high)

    def predict(self, module: Any, obs: Any, start: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_std, _ = module.get_action_dist_params(obs)
        return _shaped(torch.cat([mean, log_std], -1), start), None


def view_of(algorithm: Any, temperature: float) -> View:
    """Return the view of an algorithm's network.

    Raises:
        ValueError: If strategies do not know this algorithm or its policy.
    """
    if getattr(algorithm, "use_sde", False):
        raise ValueError("the policy uses gSDE, which strategies do not know; set use_sde=False")
    if isinstance(algorithm, PPO | A2C | RecurrentPPO):
        return ActorCritic(algorithm)
    if isinstance(algorithm, DQN):
        return QValues(algorithm, temperature)
    if isinstance(algorithm, SAC):
        return SACActor(algorithm)
    raise ValueError(
        f"{type(algorithm).__name__} is not supported; use PPO, A2C, RecurrentPPO, DQN or SAC"
    )


def _likelihood(space: spaces.Space[Any]) -> Likelihood:
    if isinstance(space, spaces.Discrete):
        return Categorical(int(space.n))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return FreeGaussian(space.shape[0])
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return Bernoulli(space.shape[0])
    if isinstance(space, spaces.MultiDiscrete) and len(set(space.nvec.tolist())) == 1:
        return TokenCategorical(len(space.nvec), int(space.nvec[0]))
    raise ValueError(
        f"action space is {space}; it must be Discrete, a flat Box, MultiBinary, or MultiDiscrete "
        "of equal numbers"
    )


def _parameters(distribution: Any) -> Tensor:
    """Return the parameters of a distribution of SB3, (b, P)."""
    inner = distribution.distribution
    if isinstance(inner, torch.distributions.Normal):
        return torch.cat([inner.loc, inner.scale.log()], -1)
    parts = inner if isinstance(inner, list) else [inner]
    return torch.cat([part.logits for part in parts], -1)


def _shaped(rows: Tensor, start: Tensor) -> Tensor:
    """Return (T * B, P) as (T, B, P)."""
    return rows.reshape(*start.shape, -1)


def _mapped(obs: Any, function: Any) -> Any:
    if isinstance(obs, dict):
        return {name: function(x) for name, x in obs.items()}
    return function(obs)
