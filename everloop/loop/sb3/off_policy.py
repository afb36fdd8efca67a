"""The off-policy learners of control worlds: Stable-Baselines3's DQN and SAC, unforked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from everloop.contract import World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.likelihood import Categorical, SquashedGaussian
from everloop.loop.sb3.base import (
    NetworkFactory,
    Observations,
    OptimizerFactory,
    SB3Base,
    as_world,
    optimizer_arguments,
)
from everloop.loop.state import pack, packed, restore

ACTION = "action"
BUFFER = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "dones",
    "timeouts",
    "pos",
    "full",
)
CriticFactory = Callable[[spaces.Dict], nn.Module]


def _ignore(obs: Observations, prediction: Tensor, heads: Tensor | None) -> Tensor:
    """Nobody wants to know."""
    return prediction


class _Rows(nn.Module):
    """A network of ours as SB3 calls it: observations (b, ...) -> predictions (b, P), every row an
    example of its own.
    """

    def __init__(self, network: nn.Module, space: spaces.Space[Any]) -> None:
        super().__init__()
        if getattr(network, "memory", None) is not None:
            raise ValueError("the network has a memory; DQN and SAC need one without")
        self.network, self.space = network, space
        self.on_prediction: Callable[[Observations, Tensor, Tensor | None], Tensor] = (
            _ignore  # the learner's
        )

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
    """For DQN: `network` makes the Q-network and its target, with a prediction for each action."""

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
        shown: Any = space or observation_space
        self.make: Callable[[], _Rows] = lambda: _Rows(network(shown, action_space), shown)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_q_net(self) -> Any:
        """What SB3 calls twice when it builds the policy."""
        return self.make().to(self.device)

    def _predict(self, obs: Any, deterministic: bool = True) -> Tensor:
        q: Tensor = self.q_net(obs)
        return q.argmax(-1)


class _Actor(Actor):
    """SB3's actor, but that mean and log standard deviation (b, dims) come from a network
    of ours.
    """

    def __init__(
        self,
        rows: _Rows,
        likelihood: SquashedGaussian,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
    ) -> None:
        BasePolicy.__init__(
            self, observation_space, action_space, squash_output=True
        )  # SB3's own would build networks of theirs
        self.use_sde = False
        self.action_dist: Any = SquashedDiagGaussianDistribution(likelihood.dims)
        self.rows, self.likelihood = rows, likelihood

    def get_action_dist_params(self, obs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return *self.likelihood.split(self.rows(obs)), {}


class _Critic(nn.Module):
    """Two Q-networks of ours; the action (b, dims), in [-1, 1], is one more modality."""

    def __init__(self, networks: Sequence[_Rows]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, obs: Observations, actions: Tensor) -> tuple[Tensor, ...]:
        return tuple(network({**obs, ACTION: actions}) for network in self.networks)

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


class SquashedPolicy(SACPolicy):
    """For SAC: `network` makes the actor, with mean and log standard deviation, and `critic` each
    of two critics and their targets.
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
        box = spaces.Box(-1.0, 1.0, action_space.shape, np.float32)
        likelihood = SquashedGaussian(action_space.low, action_space.high)
        shown: Any = space or observation_space
        self.new_actor: Callable[[], _Actor] = lambda: _Actor(
            _Rows(network(shown, action_space), shown), likelihood, observation_space, action_space
        )
        self.new_critic: Callable[[], _Rows] = lambda: _Rows(
            critic(spaces.Dict({**shown.spaces, ACTION: box})), shown
        )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_actor(self, features_extractor: Any = None) -> Any:
        """What SB3 calls once when it builds the policy."""
        return self.new_actor().to(self.device)

    def make_critic(self, features_extractor: Any = None) -> Any:
        """What SB3 calls twice when it builds the policy."""
        return _Critic([self.new_critic(), self.new_critic()]).to(self.device)


class OffPolicyLearner(SB3Base):
    """What DQN and SAC share: a replay buffer. Construct `DQNLearner` or `SACLearner`.

    Strategies observe each `train_freq` steps of experience once, as examples of one step, before
    the updates that follow. The batch of an update is drawn from the replay buffer, from tasks that
    nobody knows. Every phase begins with `learning_starts` random steps, and runs through SB3's
    schedules (learning rate, exploration) from their beginning.

    reset_buffer: empty the replay buffer when other tasks are learned than before, so that old
        tasks are remembered by strategies alone, as in Continual World (Wolczyk et al. 2021).
        Otherwise updates draw from all tasks that `buffer_size` still holds: perfect memory, as
        long as it lasts, without any strategy.
    """

    def __init__(
        self,
        world: World,
        parameters: Mapping[str, Any] | None,
        max_grad_norm: float,
        reset_buffer: bool,
    ) -> None:
        super().__init__(world, parameters, max_grad_norm)
        self.reset_buffer = reset_buffer
        self._sampled: tuple[Observations, Batch] | None = (
            None  # the minibatch, as SB3 has it and as ours
        )
        self._tasks: list[int] | None = None  # of which the replay buffer is full

    def _follow(self, rows: _Rows) -> None:
        """Keep each minibatch, which SB3 does not hand on to the policy, and let output losses join
        where `rows` judges it.
        """
        sample = self.model.replay_buffer.sample

        def noted(*args: Any, **kwargs: Any) -> Any:
            data = sample(*args, **kwargs)
            seen = as_world(data.observations, self.world.single_observation_space)
            shown = {name: x[None] for name, x in seen.items()}
            start = torch.ones(1, len(data.actions), dtype=torch.bool, device=data.actions.device)
            batch = Batch(shown, start, action=self._as_taken(data.actions)[None])
            self._sampled = data.observations, batch
            return data

        def joined(obs: Observations, prediction: Tensor, heads: Tensor | None) -> Tensor:
            sampled, batch = self._sampled or (None, None)
            if batch is None or obs is not sampled or not prediction.requires_grad:
                return prediction
            return self._join_losses(batch, prediction, heads, expected=batch)

        self.model.replay_buffer.sample = noted
        rows.on_prediction = joined

    def _as_taken(self, actions: Tensor) -> Tensor:
        """Actions in the world's units, of those in the replay buffer."""
        raise NotImplementedError

    def begin(self, tasks: Sequence[int], steps: int) -> None:
        if self.reset_buffer and self._tasks != list(tasks):
            self.model.replay_buffer.reset()
        self._tasks = list(tasks)
        super().begin(tasks, steps)

    def position(self) -> dict[str, Any]:
        return {
            **super().position(),
            "buffer": packed(self.model.replay_buffer, BUFFER),
            "tasks": self._tasks,
        }

    def load_position(self, state: Mapping[str, Any]) -> None:
        super().load_position(state)
        restore(self.model.replay_buffer, state["buffer"])
        self._tasks = state["tasks"]

    def _collect(self) -> Batch:
        model = self.model
        self._episodes = model._episode_num
        self.env.taken = []  # SB3's replay buffer mixes what is new with what is older
        model.collect_rollouts(
            model.env,
            callback=self._callback,
            train_freq=model.train_freq,
            action_noise=model.action_noise,
            learning_starts=model.learning_starts,
            replay_buffer=model.replay_buffer,
        )
        obs, actions = zip(*self.env.taken, strict=True)
        self.env.taken = None
        return Batch(
            {name: to_tensor(np.stack([o[name] for o in obs]), self.device) for name in obs[0]},
            torch.ones(len(obs), len(actions[0]), dtype=torch.bool, device=self.device),
            action=to_tensor(np.stack(actions), self.device),
            task=torch.from_numpy(self.env.played).to(self.device),
        ).sequences(1)

    def _train(self, steps: int) -> None:
        model = self.model
        updates = model.gradient_steps if model.gradient_steps >= 0 else steps
        if model.num_timesteps > model.learning_starts and updates > 0:
            model.train(batch_size=model.batch_size, gradient_steps=updates)

    def _report(self) -> None:
        every = self.world.num_envs  # episodes
        if self.model._episode_num // every > self._episodes // every:
            self.model.dump_logs()


class DQNLearner(OffPolicyLearner):
    """DQN (Mnih et al. 2015) of Stable-Baselines3 around a network of ours.

    Strategies accompany the Q-network's updates; its target network follows as ever. To them the
    Q-values are the Boltzmann policy softmax(Q / temperature), so that a loss against stored
    Q-values is, of policy distillation's (Rusu et al. 2016, eq. 3),

        KL(softmax(Q_stored / temperature) || softmax(Q / temperature))

    There only the teacher is sharpened, by 0.01, since the student is a policy. Here the student
    goes on as a Q-network, and must not be pulled towards Q-values a hundred times as far apart: so
    both are, and the loss is 0 where nothing has changed. `rollout` draws from that policy; `act`
    without a generator is greedy; training explores as DQN does.

    network: called with (observation space, action space) of the world, makes a module without
        memory whose prediction is (T, B, actions); called a second time for the target network.
    parameters: keyword arguments of SB3's DQN (learning_rate, buffer_size, train_freq, ...).
    temperature: above 0, in the unit of returns. Where it is small against the gaps between
        Q-values, what matters is which action is best, and the Fisher information of all that is
        certain vanishes.
    max_grad_norm: clips the gradient after the strategies have edited it; SB3's own clipping is
        off.
    reset_buffer: as in `OffPolicyLearner`.
    optimizer: called with the parameters and `lr`, makes the optimizer of each network; torch's
    Adam if None. Raises ValueError for a world whose actions are not discrete, a network with a
    memory and values outside these ranges.
    """

    may_grow = False  # SB3 goes through its weights and the target network's side by side

    def __init__(
        self,
        world: World,
        network: NetworkFactory,
        parameters: Mapping[str, Any] | None = None,
        temperature: float = 0.1,
        max_grad_norm: float = 10.0,
        reset_buffer: bool = True,
        seed: int = 0,
        device: str = "auto",
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(world, parameters, max_grad_norm, reset_buffer)
        space = world.single_action_space
        if not (isinstance(space, spaces.Discrete) and space.start == 0):
            raise ValueError(f"action space is {space}, allowed for DQN: Discrete from 0")
        self.likelihood = Categorical(int(space.n), temperature)
        model = DQN(
            QPolicy,
            self.env,
            **(parameters or {}),
            max_grad_norm=math.inf,
            policy_kwargs={
                "network": network,
                "space": world.single_observation_space,
                **optimizer_arguments(optimizer),
            },
            seed=seed,
            device=device,
        )
        rows: Any = model.policy.q_net
        self._adopt(model, rows.network, model.policy.optimizer)
        self._follow(rows)

    def _as_taken(self, actions: Tensor) -> Tensor:
        return rearrange(actions, "b 1 -> b").long()


class SACLearner(OffPolicyLearner):
    """SAC (Haarnoja et al. 2018) of Stable-Baselines3 around networks of ours.

    Strategies accompany the updates of the actor alone: it is what acts, and to hold the critics as
    well did not help in Continual World (Wolczyk et al. 2021, section 4). They are free to become
    those of the task at hand.

    network: called with (observation space, action space) of the world, makes the actor: a module
        without memory whose prediction (T, B, 2 * dims) is as in `SquashedGaussian`.
    critic: called with the observation space and, as one more modality "action", the action in [-1,
        1]; makes a module whose prediction is (T, B, 1). Called four times: two critics and their
        targets.
    parameters: keyword arguments of SB3's SAC (learning_rate, buffer_size, ent_coef, ...).
    max_grad_norm: clips the actor's gradient after the strategies have edited it; infinity, as in
        SB3, leaves it.
    reset_buffer: as in `OffPolicyLearner`.
    optimizer: called with the parameters and `lr`, makes the optimizer of each network; torch's
    Adam if None. Raises ValueError for a world whose actions are no flat Box with finite bounds or
    which shows a modality "action", and for a network with a memory.
    """

    def __init__(
        self,
        world: World,
        network: NetworkFactory,
        critic: CriticFactory,
        parameters: Mapping[str, Any] | None = None,
        max_grad_norm: float = math.inf,
        reset_buffer: bool = True,
        seed: int = 0,
        device: str = "auto",
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(world, parameters, max_grad_norm, reset_buffer)
        space, shown = world.single_action_space, world.single_observation_space
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise ValueError(f"action space is {space}, allowed for SAC: a flat Box")
        if isinstance(shown, spaces.Dict) and ACTION in shown.spaces:
            raise ValueError(
                f"the world has a modality {ACTION!r}, a name that SAC's critics use; rename it"
            )
        self.likelihood: SquashedGaussian = SquashedGaussian(space.low, space.high)
        model = SAC(
            SquashedPolicy,
            self.env,
            **(parameters or {}),
            policy_kwargs={
                "network": network,
                "critic": critic,
                "space": world.single_observation_space,
                **optimizer_arguments(optimizer),
            },
            seed=seed,
            device=device,
        )
        actor: Any = model.actor
        self._adopt(model, actor.rows.network, actor.optimizer)
        self._follow(actor.rows)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        entropy = self.model.ent_coef_optimizer
        return {"critic": self.model.critic.optimizer} | (
            {} if entropy is None else {"entropy": entropy}
        )

    def learned(self) -> dict[str, Any]:
        return {**super().learned(), "log_ent_coef": pack(self.model.log_ent_coef)}

    def load_learned(self, state: Mapping[str, Any]) -> None:
        super().load_learned(state)
        if state["log_ent_coef"] is not None:
            with torch.no_grad():
                self.model.log_ent_coef.copy_(state["log_ent_coef"])

    def _as_taken(self, actions: Tensor) -> Tensor:
        return self.likelihood.stretch(actions)
