"""SB3's policies for DQN and SAC, with networks from factories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from everloop.loop.likelihood import SquashedGaussian
from everloop.loop.sb3.base import NetworkFactory, Observations, as_world, has_memory

ACTION = "action"
"""Modality through which SAC's critics see the action."""

CriticFactory = Callable[[spaces.Dict], nn.Module]


def _unchanged(obs: Observations, prediction: Tensor, heads: Tensor | None) -> Tensor:
    """Return the prediction as it is."""
    return prediction


class Adapter(nn.Module):
    """A network in the form in which SB3 calls it.

    Called with observations (b, ...), it returns predictions (b, P). Each row is an example of one
    step.

    Args:
        network: A network without memory.
        space: The world's observation space.
        seen: The space of what the network sees, if it sees more.

    Raises:
        ValueError: If the network has a memory.
    """

    def __init__(
        self,
        network: nn.Module,
        space: spaces.Space[Any],
        seen: spaces.Space[Any] | None = None,
    ) -> None:
        super().__init__()
        if has_memory(network, seen or space):
            raise ValueError(
                "the network has a memory, which DQN and SAC can't train; use a network without "
                "one (recurrent=False in Agent)"
            )
        self.network, self.space = network, space
        # The learner sets a function that adds the strategies' gradients.
        self.on_prediction: Callable[[Observations, Tensor, Tensor | None], Tensor] = _unchanged

    def forward(self, obs: Observations) -> Tensor:
        rows = {name: x[None] for name, x in as_world(obs, self.space).items()}
        first = next(iter(rows.values()))
        start = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        output, _ = self.network(rows, self.network.initial_state(first.shape[1]), start)  # type: ignore[operator]
        heads = None if output.heads is None else output.heads[0]
        return self.on_prediction(obs, output.prediction[0], heads)

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


class QPolicy(DQNPolicy):
    """SB3's policy for DQN, with networks from a factory.

    Args:
        network: Function from the observation space and the action space to a Q-network, whose
            prediction has one value for each action. It is called again for the target network.
        space: The world's observation space; None for SB3's, which is the same without images.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Any,
        *,
        network: NetworkFactory,
        space: spaces.Dict | None = None,
        **kwargs: Any,
    ) -> None:
        self.space: Any = space or observation_space
        self.make_network = network
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_q_net(self) -> Any:
        """Return a new Q-network. SB3 calls this for the network and for its target."""
        network = self.make_network(self.space, self.action_space)
        return Adapter(network, self.space).to(self.device)

    def _predict(self, obs: Any, deterministic: bool = True) -> Tensor:
        q: Tensor = self.q_net(obs)
        return q.argmax(-1)


class _Actor(Actor):
    """SB3's actor with the mean and log standard deviation (b, dims) of a given network."""

    def __init__(
        self,
        adapter: Adapter,
        likelihood: SquashedGaussian,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
    ) -> None:
        # Actor.__init__ would build SB3's own networks.
        BasePolicy.__init__(self, observation_space, action_space, squash_output=True)
        self.use_sde = False
        self.action_dist: Any = SquashedDiagGaussianDistribution(likelihood.dims)
        self.adapter, self.likelihood = adapter, likelihood

    def get_action_dist_params(self, obs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return *self.likelihood.split(self.adapter(obs)), {}


class _Critic(nn.Module):
    """Two Q-networks that see the action (b, dims), in [-1, 1], as one more modality."""

    def __init__(self, networks: Sequence[Adapter]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, obs: Observations, actions: Tensor) -> tuple[Tensor, ...]:
        return tuple(network({**obs, ACTION: actions}) for network in self.networks)

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


class SquashedPolicy(SACPolicy):
    """SB3's policy for SAC, with networks from factories.

    Args:
        network: Function from the observation space and the action space to the actor, whose
            prediction is the mean and log standard deviation of `SquashedGaussian`.
        critic: Function from an observation space that contains the action to a critic. It is
            called four times: for two critics and their targets.
        space: The world's observation space; None for SB3's, which is the same without images.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Any,
        *,
        network: NetworkFactory,
        critic: CriticFactory,
        space: spaces.Dict | None = None,
        use_sde: bool = False,
        **kwargs: Any,
    ) -> None:
        self.space: Any = space or observation_space
        self.make_network, self.make_q_network = network, critic
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_actor(self, features_extractor: Any = None) -> Any:
        """Return a new actor. SB3 calls this once."""
        actions: Any = self.action_space
        likelihood = SquashedGaussian(actions.low, actions.high)
        adapter = Adapter(self.make_network(self.space, actions), self.space)
        return _Actor(adapter, likelihood, self.observation_space, actions).to(self.device)

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Return two new critics. SB3 calls this for the critics and for their targets."""
        action = spaces.Box(-1.0, 1.0, self.action_space.shape, np.float32)
        space = spaces.Dict({**self.space.spaces, ACTION: action})
        pair = [Adapter(self.make_q_network(space), self.space, space) for _ in range(2)]
        return _Critic(pair).to(self.device)
