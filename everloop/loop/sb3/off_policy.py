"""Off-policy learners for reinforcement learning: DQN and SAC of Stable-Baselines3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from torch import Tensor

from everloop.contract import World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.reset import reset_state
from everloop.loop.likelihood import Categorical, SquashedGaussian
from everloop.loop.sb3.base import (
    Callbacks,
    NetworkFactory,
    Observations,
    OptimizerFactory,
    SB3Base,
    as_world,
    check_algorithm,
    optimizer_arguments,
)
from everloop.loop.sb3.off_policy_networks import (
    ACTION,
    Adapter,
    CriticFactory,
    QPolicy,
    SquashedPolicy,
)
from everloop.loop.state import pack, packed, restore

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
"""Attributes of SB3's replay buffer that hold its contents."""


class OffPolicyLearner(SB3Base):
    """Base class of `DQNLearner` and `SACLearner`, which learn from a replay buffer.

    Strategies observe the `train_freq` steps of each rollout once, as examples of one step, before
    the updates that follow. The batch of an update is a sample from the replay buffer, which does
    not store the tasks. Every phase begins with `learning_starts` random steps, and starts SB3's
    schedules of learning rate and exploration again.

    Args:
        world: A world for reinforcement learning.
        parameters: Keyword arguments of SB3's algorithm.
        max_grad_norm: Norm to which the gradient is clipped after the strategies, above 0.
        reset_buffer: Empty the replay buffer when the tasks change, so that only strategies
            preserve past tasks, as in Continual World (Wolczyk et al. 2021). Otherwise updates use
            all tasks that are still in the buffer, which prevents forgetting by itself while they
            last.
        reset_optimizer: Forget the state of all optimizers, such as Adam's moments, when the tasks
            change, as in Continual World. Otherwise each task begins with those of the last one.
    """

    def __init__(
        self,
        world: World,
        parameters: Mapping[str, Any] | None,
        max_grad_norm: float,
        reset_buffer: bool,
        reset_optimizer: bool,
    ) -> None:
        super().__init__(world, parameters, max_grad_norm, reset_optimizer)
        self.reset_buffer = reset_buffer
        # The minibatch of the update, as SB3's observations and as a batch.
        self._sampled: tuple[Observations, Batch] | None = None

    def _follow(self, adapter: Adapter) -> None:
        """Add the strategies' gradients to the predictions of `adapter` for each minibatch.

        SB3 does not pass the minibatch to the policy, so it is recorded when it is sampled.
        """
        sample = self.model.replay_buffer.sample

        def recorded(*args: Any, **kwargs: Any) -> Any:
            data = sample(*args, **kwargs)
            rows = as_world(data.observations, self.world.single_observation_space)
            obs = {name: x[None] for name, x in rows.items()}
            start = torch.ones(1, len(data.actions), dtype=torch.bool, device=data.actions.device)
            batch = Batch(obs, start, action=self._in_network_units(data.actions)[None])
            self._sampled = data.observations, batch
            return data

        def joined(obs: Observations, prediction: Tensor, heads: Tensor | None) -> Tensor:
            sampled, batch = self._sampled or (None, None)
            if batch is None or obs is not sampled or not prediction.requires_grad:
                return prediction
            return self._join_losses(batch, prediction, heads, expected=batch)

        self.model.replay_buffer.sample = recorded
        adapter.on_prediction = joined

    def _in_network_units(self, actions: Tensor) -> Tensor:
        """Convert actions of the replay buffer to those that batches hold."""
        raise NotImplementedError

    def _reset(self) -> None:
        super()._reset()
        if self.reset_buffer:
            self.model.replay_buffer.reset()

    def position(self) -> dict[str, Any]:
        return {**super().position(), "buffer": packed(self.model.replay_buffer, BUFFER)}

    def load_position(self, state: Mapping[str, Any]) -> None:
        super().load_position(state)
        restore(self.model.replay_buffer, state["buffer"])

    @property
    def unit(self) -> int:
        freq = self.model.train_freq
        in_steps = freq.unit is TrainFrequencyUnit.STEP  # else in episodes, whose length is unknown
        return int(freq.frequency if in_steps else 1) * self.world.num_envs

    def _collect(self) -> Batch | None:
        model = self.model
        self._episodes = model._episode_num
        self.env.taken = []  # the replay buffer does not say which experience is new
        rollout = model.collect_rollouts(
            model.env,
            callback=self._callback,
            train_freq=model.train_freq,
            action_noise=model.action_noise,
            learning_starts=model.learning_starts,
            replay_buffer=model.replay_buffer,
        )
        taken, self.env.taken = self.env.taken, None
        if not rollout.continue_training:
            return None
        obs, actions = zip(*taken, strict=True)
        experience = Batch(
            {name: to_tensor(np.stack([o[name] for o in obs]), self.device) for name in obs[0]},
            torch.ones(len(obs), len(actions[0]), dtype=torch.bool, device=self.device),
            action=to_tensor(np.stack(actions), self.device),
            task=torch.from_numpy(self.env.played).to(self.device),
        )
        return experience.sequences(1)

    def _train(self, steps: int) -> None:
        model = self.model
        updates = model.gradient_steps if model.gradient_steps >= 0 else steps
        if model.num_timesteps > model.learning_starts and updates > 0:
            model.train(batch_size=model.batch_size, gradient_steps=updates)

    def _report(self) -> None:
        every = self.world.num_envs  # number of episodes between two log entries
        if self.model._episode_num // every > self._episodes // every:
            self.model.dump_logs()


class DQNLearner(OffPolicyLearner):
    """DQN (Mnih et al. 2015) of Stable-Baselines3.

    Strategies run around the updates of the Q-network. Its target network follows as usual. For
    strategies the Q-values are the Boltzmann policy softmax(Q / temperature). So a loss against
    stored Q-values has the form of policy distillation (Rusu et al. 2016, eq. 3):

        KL(softmax(Q_stored / temperature) || softmax(Q / temperature))

    The paper divides only the teacher's Q-values by a temperature of 0.01, since its student is a
    policy. Here the student must remain a Q-network, so both are divided. Otherwise the loss would
    drive its Q-values a hundred times as far apart. The loss is 0 if no Q-value has changed.

    `rollout` samples from the Boltzmann policy. `act` without a generator is greedy. Exploration in
    training is DQN's own.

    Args:
        world: A world with Discrete actions.
        network: Function from the world's observation space and action space to a module without
            memory, whose prediction is (T, B, actions). It is called again for the target network.
        parameters: Keyword arguments of the algorithm, such as learning_rate, buffer_size,
            train_freq.
        temperature: Temperature of the Boltzmann policy in units of the return, above 0. If it is
            small compared with the gaps between Q-values, only the best action matters, and the
            Fisher information of states with a certain action vanishes.
        max_grad_norm: Norm to which the gradient is clipped after the strategies, above 0. SB3's
            own clipping is off.
        reset_buffer: Empty the replay buffer when the tasks change; see `OffPolicyLearner`.
        reset_optimizer: Forget the state of the optimizers when the tasks change.
        seed: Seed of SB3's algorithm, 0 or more.
        device: Device of the networks, such as "cpu"; "auto" for a GPU if there is one.
        optimizer: Function from the parameters and `lr` to the optimizer of each network; None for
            torch's Adam.
        algorithm: `DQN` or a subclass.
        callback: Callback of SB3 or a list of them, as in SB3's `learn`, which takes each phase for
            one call of it. Their numbers, texts and arrays are saved in checkpoints.

    Raises:
        ValueError: If the world's actions are not discrete, the network has a memory, or a value
            is out of its range.
    """

    # SB3 pairs the weights of the network with those of the target network.
    supports_new_weights = False

    def __init__(
        self,
        world: World,
        network: NetworkFactory,
        parameters: Mapping[str, Any] | None = None,
        temperature: float = 0.1,
        max_grad_norm: float = 10.0,
        reset_buffer: bool = True,
        reset_optimizer: bool = False,
        seed: int = 0,
        device: str = "auto",
        optimizer: OptimizerFactory | None = None,
        algorithm: type[DQN] = DQN,
        callback: Callbacks = None,
    ) -> None:
        check_algorithm(algorithm, (DQN,))
        super().__init__(world, parameters, max_grad_norm, reset_buffer, reset_optimizer)
        space = self.env.action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"action space is {space}; DQN needs Discrete actions")
        self.likelihood = Categorical(int(space.n), temperature)
        model = algorithm(
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
        adapter: Any = model.policy.q_net
        self._adopt(model, adapter.network, model.policy.optimizer, callback)
        self._follow(adapter)

    def initialise(self, weights: Mapping[str, Tensor], source: str) -> list[str]:
        notes = super().initialise(weights, source)
        self.policy.q_net_target.load_state_dict(self.policy.q_net.state_dict())
        return notes

    def _in_network_units(self, actions: Tensor) -> Tensor:
        return rearrange(actions, "b 1 -> b").long()


class SACLearner(OffPolicyLearner):
    """SAC (Haarnoja et al. 2018) of Stable-Baselines3.

    Strategies run only around the updates of the actor, since the actor chooses the actions. The
    critics adapt freely to the current task. To regularize them too did not help in Continual World
    (Wolczyk et al. 2021, section 4).

    Args:
        world: A world whose actions are a flat Box with finite bounds.
        network: Function from the world's observation space and action space to the actor, a module
            without memory. Its prediction (T, B, 2 * dims) is as in `SquashedGaussian`.
        critic: Function from an observation space to a critic, a module without memory whose
            prediction is (T, B, 1). The space has one more modality "action", the action in
            [-1, 1]. The function is called four times: for two critics and their targets.
        parameters: Keyword arguments of the algorithm, such as learning_rate, buffer_size,
            ent_coef.
        max_grad_norm: Norm to which the actor's gradient is clipped after the strategies, above 0;
            infinity for no clipping, as in SB3.
        reset_buffer: Empty the replay buffer when the tasks change; see `OffPolicyLearner`.
        reset_optimizer: Forget the state of the optimizers when the tasks change.
        reset_entropy: Set the entropy coefficient to its initial value when the tasks change, and
            forget its optimizer's state. Otherwise a task begins with the coefficient that the last
            one has learned, which may be too small to explore. Continual World has one for each
            task.
        seed: Seed of SB3's algorithm, 0 or more.
        device: Device of the networks, such as "cpu"; "auto" for a GPU if there is one.
        optimizer: Function from the parameters and `lr` to the optimizer of each network; None for
            torch's Adam.
        algorithm: `SAC` or a subclass.
        callback: Callback of SB3 or a list of them, as in SB3's `learn`, which takes each phase for
            one call of it. Their numbers, texts and arrays are saved in checkpoints.

    Raises:
        ValueError: If the world's actions are not a flat Box with finite bounds, the world has a
            modality "action", a network has a memory, or the entropy coefficient to reset is
            constant.
    """

    def __init__(
        self,
        world: World,
        network: NetworkFactory,
        critic: CriticFactory,
        parameters: Mapping[str, Any] | None = None,
        max_grad_norm: float = math.inf,
        reset_buffer: bool = True,
        reset_optimizer: bool = False,
        reset_entropy: bool = False,
        seed: int = 0,
        device: str = "auto",
        optimizer: OptimizerFactory | None = None,
        algorithm: type[SAC] = SAC,
        callback: Callbacks = None,
    ) -> None:
        check_algorithm(algorithm, (SAC,))
        super().__init__(world, parameters, max_grad_norm, reset_buffer, reset_optimizer)
        space, observations = self.env.action_space, world.single_observation_space
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise ValueError(f"action space is {space}; SAC needs a flat Box")
        if isinstance(observations, spaces.Dict) and ACTION in observations.spaces:
            raise ValueError(
                f"the world has a modality {ACTION!r}, but SAC's critics use this name; rename it"
            )
        self.likelihood: SquashedGaussian = SquashedGaussian(space.low, space.high)
        model = algorithm(
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
        if reset_entropy and model.log_ent_coef is None:
            raise ValueError(
                f"reset_entropy is True, but ent_coef is {model.ent_coef}, which does not change; "
                "leave it out"
            )
        self._entropy = pack(model.log_ent_coef) if reset_entropy else None  # its initial value
        actor: Any = model.actor
        self._adopt(model, actor.adapter.network, actor.optimizer, callback)
        self._follow(actor.adapter)

    def _reset(self) -> None:
        super()._reset()
        if self._entropy is not None:
            with torch.no_grad():
                self.model.log_ent_coef.copy_(self._entropy)
            reset_state(self.model.ent_coef_optimizer)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = {"critic": self.model.critic.optimizer}
        if self.model.ent_coef_optimizer is not None:
            optimizers["entropy"] = self.model.ent_coef_optimizer
        return optimizers

    def learned(self) -> dict[str, Any]:
        return {**super().learned(), "log_ent_coef": pack(self.model.log_ent_coef)}

    def load_learned(self, state: Mapping[str, Any]) -> None:
        super().load_learned(state)
        if state["log_ent_coef"] is not None:
            with torch.no_grad():
                self.model.log_ent_coef.copy_(state["log_ent_coef"])

    def _in_network_units(self, actions: Tensor) -> Tensor:
        return self.likelihood.stretch(actions)
