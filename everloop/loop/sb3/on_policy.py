"""On-policy learner for reinforcement learning: PPO and RecurrentPPO of Stable-Baselines3."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor

from everloop.contract import NetworkOutput, World
from everloop.loop.batch import Batch
from everloop.loop.likelihood import likelihood_for
from everloop.loop.sb3.base import (
    Callbacks,
    NetworkFactory,
    Observations,
    OptimizerFactory,
    SB3Base,
    as_world,
    check_algorithm,
    has_memory,
    optimizer_arguments,
)
from everloop.loop.state import pack


class _NetworkPolicy(BasePolicy):
    """A given network behind the methods that SB3's on-policy algorithms call.

    SB3 flattens n sequences of l steps with the batch first, (n l). The network has time first.

    Args:
        network: Function from the observation space and the action space to a module with a value
            head.
        space: The world's observation space; None for SB3's, which is the same without images.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        use_sde: bool = False,
        *,
        network: NetworkFactory,
        space: spaces.Dict | None = None,
        **kwargs: Any,
    ) -> None:
        # The constructors of SB3's other policies would build SB3's own networks.
        BasePolicy.__init__(self, observation_space, action_space, **kwargs)
        shown: Any = space or observation_space
        self.space: spaces.Dict = shown
        self.network = network(self.space, action_space)
        self.likelihood = likelihood_for(action_space)
        self.optimizer = self.optimizer_class(
            self.parameters(), **{"lr": lr_schedule(1), **self.optimizer_kwargs}
        )

    def run(self, obs: Observations, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return prediction (n l, P), value (n l, 1) and the next state (n, H).

        Args:
            obs: Observations by modality, (n l, ...).
            state: The network's memory before the sequences, (n, H).
            start: bool (n l), True where an episode begins.
        """
        output, state = self._output(obs, state, start)
        return *_rows_of(output), state

    def _output(
        self, obs: Observations, state: Tensor, start: Tensor
    ) -> tuple[NetworkOutput, Tensor]:
        n = len(state)
        sequences = {
            name: rearrange(x, "(n l) ... -> l n ...", n=n)
            for name, x in as_world(obs, self.space).items()
        }
        result: tuple[NetworkOutput, Tensor] = self.network(
            sequences, state, rearrange(start, "(n l) -> l n", n=n)
        )
        return result

    def on_evaluated(
        self, batch: Batch, begins: Tensor, prediction: Tensor, heads: Tensor | None
    ) -> Tensor:
        """Called in training with a minibatch and its outputs. The learner replaces it.

        Args:
            batch: The steps, each as an example, (1, n l, ...).
            begins: bool (n l), True where a sequence begins.
            prediction: The network's prediction for them, (n l, P).
            heads: The outputs of all tasks' heads, (n l, K, P); None without heads per task.
        """
        return prediction

    def choose(self, p: Tensor, deterministic: bool) -> Tensor:
        return self.likelihood.mode(p) if deterministic else self.likelihood.sample(p)

    def evaluate(
        self, obs: Observations, state: Tensor, start: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (n l, 1), log-likelihoods (n l,) and entropies (n l,) in training."""
        output, _ = self._output(obs, state, start)
        p, values = _rows_of(output)
        if self.likelihood.discrete:
            actions = actions.long()  # SB3 stores choices as floats
        rows = {name: x[None] for name, x in as_world(obs, self.space).items()}
        batch = Batch(rows, torch.ones_like(start)[None], action=actions[None])
        heads = None if output.heads is None else rearrange(output.heads, "l n k p -> (n l) k p")
        begins = torch.zeros_like(start)
        begins[:: len(start) // len(state)] = True
        p = self.on_evaluated(batch, begins, p, heads)
        return values, self.likelihood.log_prob(p, actions), self.likelihood.entropy(p)


def _rows_of(output: NetworkOutput) -> tuple[Tensor, Tensor]:
    """Return prediction (n l, P) and value (n l, 1) of an output (l, n, ...)."""
    assert output.value is not None, "on-policy algorithms need a network with a value head"
    prediction = rearrange(output.prediction, "l n p -> (n l) p")
    return prediction, rearrange(output.value, "l n -> (n l) 1")


class NetworkPolicy(_NetworkPolicy, ActorCriticPolicy):
    """SB3's policy for PPO. Every step is a separate example.

    Raises:
        ValueError: If the network has a memory. PPO would train it with an empty memory at each
            step, but act with a running one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if has_memory(self.network, self.space):
            raise ValueError(
                "the network has a memory, which PPO can't train; use RecurrentPPO, or a network "
                "without one (recurrent=False in Agent)"
            )

    def _run_steps(self, obs: Observations) -> tuple[Tensor, Tensor]:
        rows = len(next(iter(obs.values())))
        start = torch.ones(rows, dtype=torch.bool, device=self.device)
        p, values, _ = self.run(obs, self.network.initial_state(rows), start)  # type: ignore[operator]
        return p, values

    def forward(  # type: ignore[override]
        self, obs: Observations, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        p, values = self._run_steps(obs)
        actions = self.choose(p, deterministic)
        return actions, values, self.likelihood.log_prob(p, actions)

    def evaluate_actions(self, obs: Observations, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        start = torch.ones(len(actions), dtype=torch.bool, device=self.device)
        return self.evaluate(obs, self.network.initial_state(len(actions)), start, actions)  # type: ignore[operator]

    def predict_values(self, obs: Observations) -> Tensor:  # type: ignore[override]
        return self._run_steps(obs)[1]

    def _predict(self, observation: Observations, deterministic: bool = False) -> Tensor:  # type: ignore[override]
        return self.choose(self._run_steps(observation)[0], deterministic)


class RecurrentNetworkPolicy(_NetworkPolicy, RecurrentActorCriticPolicy):
    """SB3's policy for RecurrentPPO. Actor and critic share one memory.

    The memory's state fills all four slots that SB3 has for LSTM states. SB3 pads a minibatch's
    sequences so that an episode starts only at the beginning of a sequence, where the network
    resets its state. So no loop over time is needed, unlike in SB3's own policy.

    Raises:
        ValueError: If the network has no memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not has_memory(self.network, self.space):
            raise ValueError(
                "the network has no memory, which RecurrentPPO trains; use PPO, or a network with "
                "one (recurrent=True in Agent)"
            )
        self.lstm_hidden_state_shape = (1, 1, self.lstm_actor.hidden_size)

    @property
    def lstm_actor(self) -> Any:  # type: ignore[override]
        """What RecurrentPPO asks a recurrent layer for: the size of the network's state."""
        size = self.network.initial_state(1).shape[1]  # type: ignore[operator]
        return SimpleNamespace(num_layers=1, hidden_size=size)

    @staticmethod
    def _states(state: Tensor) -> RNNStates:
        slot = rearrange(state, "n h -> 1 n h")
        return RNNStates((slot, slot), (slot, slot))

    def forward(  # type: ignore[override]
        self,
        obs: Observations,
        lstm_states: RNNStates,
        episode_starts: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        p, values, state = self.run(obs, lstm_states.pi[0][0], episode_starts > 0)
        actions = self.choose(p, deterministic)
        return actions, values, self.likelihood.log_prob(p, actions), self._states(state)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Observations, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.evaluate(obs, lstm_states.pi[0][0], episode_starts > 0, actions)

    def predict_values(  # type: ignore[override]
        self,
        obs: Observations,
        lstm_states: tuple[Tensor, ...],
        episode_starts: Tensor,
    ) -> Tensor:
        return self.run(obs, lstm_states[0][0], episode_starts > 0)[1]

    def _predict(  # type: ignore[override]
        self,
        observation: Observations,
        lstm_states: tuple[Tensor, ...],
        episode_starts: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        p, _, state = self.run(observation, lstm_states[0][0], episode_starts > 0)
        return self.choose(p, deterministic), self._states(state).pi


class SB3Learner(SB3Base):
    """PPO (Schulman et al. 2017) or RecurrentPPO of Stable-Baselines3.

    Around a step of the optimizer, strategies get the minibatch as examples of `sequence_length`
    steps, each of which begins with an empty memory.

    Args:
        world: A world for reinforcement learning.
        network: Function from the world's observation space and action space to a module with a
            value head.
        algorithm: `PPO`, or `RecurrentPPO` for a network with a memory; or a subclass of one.
        parameters: Keyword arguments of the algorithm, such as n_steps, batch_size, learning_rate.
        max_grad_norm: Norm to which the gradient is clipped after the strategies, above 0. SB3's
            own clipping is off.
        sequence_length: Number of steps of a stored example of a recurrent policy, 1 or more. It
            must divide n_steps.
        reset_optimizer: Forget the optimizer's state, such as Adam's moments, when the tasks
            change. Otherwise each task begins with the moments of the last one.
        seed: Seed of SB3's algorithm, 0 or more.
        device: Device of the network, such as "cpu"; "auto" for a GPU if there is one.
        optimizer: Function from the parameters and `lr` to the optimizer; None for torch's Adam.
        callback: Callback of SB3 or a list of them, as in SB3's `learn`, which takes each phase for
            one call of it. Their numbers, texts and arrays are saved in checkpoints.

    Raises:
        ValueError: If the algorithm is another one, `parameters` contains an argument that the
            learner sets, `sequence_length` does not divide n_steps, PPO is given a network with a
            memory, or RecurrentPPO one without.
    """

    def __init__(
        self,
        world: World,
        network: NetworkFactory,
        algorithm: type[PPO] | type[RecurrentPPO] = PPO,
        parameters: Mapping[str, Any] | None = None,
        max_grad_norm: float = 0.5,
        sequence_length: int = 1,
        reset_optimizer: bool = False,
        seed: int = 0,
        device: str = "auto",
        optimizer: OptimizerFactory | None = None,
        callback: Callbacks = None,
    ) -> None:
        check_algorithm(algorithm, (PPO, RecurrentPPO))
        self.likelihood = likelihood_for(world.single_action_space)
        super().__init__(world, parameters, max_grad_norm, reset_optimizer)
        recurrent = issubclass(algorithm, RecurrentPPO)
        model = algorithm(
            RecurrentNetworkPolicy if recurrent else NetworkPolicy,  # type: ignore[arg-type]
            self.env,
            **(parameters or {}),
            max_grad_norm=math.inf,
            policy_kwargs={
                "network": network,
                "space": world.single_observation_space,
                **optimizer_arguments(optimizer, eps=1e-5),
            },
            seed=seed,
            device=device,
        )
        if sequence_length < 1 or model.n_steps % sequence_length:
            raise ValueError(
                f"sequence_length is {sequence_length}; it must divide n_steps = {model.n_steps}"
            )
        self.sequence_length = sequence_length
        if recurrent and sequence_length == 1:
            self.notes = [
                "sequence_length is 1, so strategies see nothing of the memory's recurrent "
                "weights; use a longer one, such as 16"
            ]
        self._unpadded: Tensor | None = None  # bool, True for real steps of a padded minibatch
        policy: Any = model.policy
        self._adopt(model, policy.network, policy.optimizer, callback)
        policy.on_evaluated = self._evaluated
        if recurrent:
            self._record_padding()

    def _record_padding(self) -> None:
        """Record the padding mask of each minibatch, which SB3 does not pass to the policy."""
        get = self.model.rollout_buffer.get

        def recorded(batch_size: int | None = None) -> Iterator[Any]:
            for data in get(batch_size):
                self._unpadded = data.mask > 0.5
                yield data

        self.model.rollout_buffer.get = recorded

    def _evaluated(
        self, batch: Batch, begins: Tensor, prediction: Tensor, heads: Tensor | None
    ) -> Tensor:
        expected = batch
        if self._unpadded is not None:
            real = self._unpadded
            expected = _sequences(batch[real], begins[real], self.sequence_length)
        return self._join_losses(batch, prediction, heads, expected)

    def position(self) -> dict[str, Any]:
        memory = getattr(self.model, "_last_lstm_states", None)
        return {**super().position(), "memory": None if memory is None else pack(memory.pi[0][0])}

    def load_position(self, state: Mapping[str, Any]) -> None:
        super().load_position(state)
        if state["memory"] is not None:
            self.model._last_lstm_states = RecurrentNetworkPolicy._states(state["memory"])

    def _collect(self) -> Batch | None:
        model = self.model
        goes_on = model.collect_rollouts(
            model.env, self._callback, model.rollout_buffer, n_rollout_steps=model.n_steps
        )
        if not goes_on:
            return None
        model._update_current_progress_remaining(model.num_timesteps, self._total)
        return self.rollout_batch()

    def _train(self, steps: int) -> None:
        self.model.train()

    def _report(self) -> None:
        self.model.dump_logs(self.model.num_timesteps // (self.model.n_steps * self.world.num_envs))

    @property
    def unit(self) -> int:
        return int(self.model.n_steps) * self.world.num_envs

    def updates(self, steps: int) -> int:
        rollouts = -(-steps // self.unit)
        minibatches = -(-self.unit // int(self.model.batch_size))
        return rollouts * int(self.model.n_epochs) * minibatches

    def rollout_batch(self) -> Batch:
        """Return the latest rollout as examples of `sequence_length` steps."""
        buffer = self.model.rollout_buffer
        obs = {name: torch.from_numpy(x).to(self.device) for name, x in buffer.observations.items()}
        actions = torch.from_numpy(buffer.actions)
        if isinstance(self.env.action_space, spaces.Discrete):
            actions = rearrange(actions, "t b 1 -> t b")
        if self.likelihood.discrete:
            actions = actions.long()
        rollout = Batch(
            as_world(obs, self.world.single_observation_space),
            torch.from_numpy(buffer.episode_starts > 0).to(self.device),
            action=actions.to(self.device),
            task=torch.from_numpy(self.env.played).to(self.device),
        )
        return rollout.sequences(self.sequence_length)


def _sequences(steps: Batch, begins: Tensor, length: int) -> Batch:
    """Return consecutive steps as examples of `length` steps, so that a memory takes part in them.

    Each example begins with an empty memory. Steps that do not fill an example are left out.

    Args:
        steps: The steps, each as an example, (1, n, ...).
        begins: bool (n,), True where a sequence of SB3 begins.
        length: Number of steps of an example, 1 or more. With fewer steps there is one example.
    """
    length = min(length, len(steps))
    kept = len(steps) // length * length
    assert steps.action is not None
    one = Batch(
        {name: x[0, :kept, None] for name, x in steps.obs.items()},
        begins[:kept, None],
        action=steps.action[0, :kept, None],
    )
    return one.sequences(length)
