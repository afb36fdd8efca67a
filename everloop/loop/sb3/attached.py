"""Strategies in the algorithms of Stable-Baselines3 that a user's own script creates."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from everloop.contract import NetworkOutput, Output, Task
from everloop.loop.batch import Batch
from everloop.loop.learners.accompanied import trained_by
from everloop.loop.learners.joining import uses_fresh
from everloop.loop.learners.shown import Recent
from everloop.loop.model import frozen_copy_of
from everloop.loop.sb3.control import Control
from everloop.loop.sb3.views import view_of
from everloop.loop.strategies.base import Forward, Strategy, load_states, states_of, viewing

ALONE = "obs"
"""Modality name of observations that are a single array."""


def attach_sb3(
    strategies: Sequence[Strategy],
    algorithm: Any,
    *,
    sequence_length: int = 1,
    temperature: float = 0.1,
) -> AttachedSB3:
    """Run `strategies` around the updates of an algorithm of Stable-Baselines3.

        model = PPO("MlpPolicy", env)
        loop = attach_sb3([EWC(100.0)], model)
        for task, env in enumerate(envs):
            model.set_env(env)
            model.learn(10_000, callback=loop.callback(task))

    Strategies see the policy of PPO, A2C and RecurrentPPO, the Q-network of DQN, or the actor of
    SAC. The algorithm's `max_grad_norm` is applied after the strategies. A replay buffer keeps the
    experience of earlier tasks, unless the script calls `model.replay_buffer.reset()`.

    Args:
        strategies: Strategies in their order of application. Inactive ones are left out.
        algorithm: A PPO, A2C, RecurrentPPO, DQN or SAC with a policy of SB3, or one derived from
            it.
        sequence_length: Number of steps of a stored example of a recurrent policy, 1 or more. It
            must divide n_steps.
        temperature: Temperature of DQN's Boltzmann policy in units of the return, above 0.

    Raises:
        ValueError: If the algorithm is not supported, if a strategy does not work with it, or if a
            number is out of range.
    """
    return AttachedSB3(strategies, algorithm, sequence_length, temperature)


class AttachedSB3(Control):
    """Strategies in an algorithm of Stable-Baselines3; `attach_sb3` returns it."""

    def __init__(
        self,
        strategies: Sequence[Strategy],
        algorithm: Any,
        sequence_length: int,
        temperature: float,
    ) -> None:
        self.algorithm, self.network = algorithm, view_of(algorithm, temperature)
        steps = getattr(algorithm, "n_steps", 1) if self.network.recurrent else 1
        if sequence_length < 1 or steps % sequence_length:
            raise ValueError(
                f"sequence_length is {sequence_length}; it must divide n_steps = {steps}, and be 1 "
                "for a policy without memory"
            )
        self.module, self.optimizer = self.network.module, self.network.optimizer
        self.likelihood, self.sequence_length = self.network.likelihood, sequence_length
        self.supports_new_weights = self.network.on_policy
        norm = getattr(algorithm, "max_grad_norm", None)
        self.max_grad_norm = None if norm is None or math.isinf(norm) else norm
        self.current: Task | None = None
        self.shown = Recent()  # the latest experience of the current task
        self.minibatch: Batch | None = None
        self.attach(strategies)

    def callback(self, task: int, name: str | None = None) -> BaseCallback:
        """Return the callback for one call of `learn`, in which `task` is learned.

        Args:
            task: The task's ID, 0 or more.
            name: The task's name; by default "task-<ID>".
        """
        return _Learning(self, Task(task, name or f"task-{task}"))

    def detach(self) -> None:
        """Take all hooks off the optimizer."""
        self.updater.detach()

    def check(self, strategies: Sequence[Strategy]) -> None:
        super().check(strategies)
        for strategy in strategies:
            if self.network.recurrent and strategy.active and uses_fresh(strategy):
                raise ValueError(
                    f"{strategy.name} has a loss of the fresh batch, which needs a policy without "
                    "memory here; use replay, ewc or si"
                )

    @contextmanager
    def view(self, task: int) -> Iterator[None]:
        """Prepare the network for evaluating `task`, for example with `evaluate_policy`."""
        with viewing(self.strategies, Task(task, f"task-{task}"), self):
            yield

    def weights(self) -> dict[str, nn.Parameter]:
        return trained_by(self.optimizer, super().weights())

    def forward(self, batch: Batch, module: nn.Module | None = None) -> NetworkOutput:
        rows = {name: x.flatten(0, 1) for name, x in batch.obs.items()}
        obs = rows[ALONE] if set(rows) == {ALONE} else rows
        return Output(*self.network.predict(module or self.module, obs, batch.start))

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0, device=self.device)

    def frozen_copy(self) -> nn.Module:
        # SB3's policies hold their optimizer, whose hooks lead to this object and the environment.
        return frozen_copy_of(self.module, {id(self.optimizer): None})

    def late_forwards(self) -> Sequence[Forward]:
        batch = self.minibatch
        if batch is None or not any(uses_fresh(strategy) for strategy in self.strategies):
            return ()
        return [Forward(batch, self.forward(batch))]

    def batch(self, obs: Any, action: Any, start: Any = None) -> Batch:
        """Return observations and actions (T, B, ...) as a batch, from arrays or tensors."""
        parts = obs if isinstance(obs, Mapping) else {ALONE: obs}
        action = torch.as_tensor(action, device=self.device)
        if isinstance(self.algorithm.action_space, spaces.Discrete):
            action = action.reshape(action.shape[:2]).long()
        elif isinstance(self.algorithm.action_space, spaces.MultiDiscrete):
            action = action.long()
        elif isinstance(self.algorithm.action_space, spaces.MultiBinary):
            action = action.float()
        start = torch.ones(action.shape[:2]) if start is None else torch.as_tensor(start)
        task = -1 if self.current is None else self.current.id
        return Batch(
            {name: torch.as_tensor(x, device=self.device) for name, x in parts.items()},
            (start > 0).to(self.device),
            action=action,
            task=torch.full((action.shape[1],), task, device=self.device),
        )

    def observe(self, batch: Batch) -> None:
        """Let strategies observe new experience, and keep it for the task's end."""
        self.steps += batch.length * len(batch)
        batch = batch.sequences(self.sequence_length)
        self.shown.add(batch, {})
        for strategy in self.strategies:
            strategy.observe(batch, self)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all strategies. The algorithm must be saved by SB3's `save`."""
        return {"steps": self.steps, "strategies": states_of(self.strategies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If the state belongs to other strategies.
        """
        load_states(self.strategies, state["strategies"], self)
        self.steps = state["steps"]


class _Learning(BaseCallback):
    """Runs one call of `learn` as a task."""

    def __init__(self, loop: AttachedSB3, task: Task) -> None:
        super().__init__()
        self.loop, self.task = loop, task
        self.taken: list[tuple[Any, Any]] = []  # observations and actions of the present rollout

    def _on_training_start(self) -> None:
        loop = self.loop
        if self.model is not loop.algorithm:
            raise ValueError("the callback belongs to another algorithm; call attach_sb3 for this")
        loop.current = self.task
        loop.shown.clear()
        for strategy in loop.strategies:
            strategy.begin_task(self.task, loop)

    def _on_step(self) -> bool:
        if not self.loop.network.on_policy:
            obs, actions = self.model._last_obs, np.array(self.locals["actions"])
            self.taken.append((copy.deepcopy(obs), actions))
        return True

    def _on_rollout_start(self) -> None:
        self._unwatch()

    def _on_rollout_end(self) -> None:
        loop, model = self.loop, self.loop.algorithm
        if loop.network.on_policy:
            buffer = model.rollout_buffer
            loop.observe(loop.batch(buffer.observations, buffer.actions, buffer.episode_starts))
        elif self.taken:
            obs = [obs for obs, _ in self.taken]
            actions = np.stack([action for _, action in self.taken])
            if isinstance(obs[0], Mapping):
                stacked: Any = {name: np.stack([o[name] for o in obs]) for name in obs[0]}
            else:
                stacked = np.stack(obs)
            loop.observe(loop.batch(stacked, actions).sequences(1))
            self.taken = []
        self._watch()

    def _on_training_end(self) -> None:
        self._unwatch()
        loop = self.loop
        examples = loop.shown.sample(self.task.id, seed=self.task.id)
        for strategy in loop.strategies:
            strategy.end_task(self.task, examples, loop)
        loop.current, loop.minibatch = None, None
        loop.updater.expect(None)

    def _watch(self) -> None:
        """Record each minibatch of the updates that follow, and switch SB3's own clipping off.

        Only until the next rollout, so that what SB3 saves during a rollout is its own.
        """
        model, loop = self.loop.algorithm, self.loop
        if loop.max_grad_norm is not None:
            model.max_grad_norm = math.inf
        if not loop.network.on_policy:
            sample = model.replay_buffer.sample

            def sampled(*args: Any, **kwargs: Any) -> Any:
                data = sample(*args, **kwargs)
                self._expect(data)
                return data

            model.replay_buffer.sample = sampled
            return
        get = model.rollout_buffer.get

        def recorded(batch_size: int | None = None) -> Iterator[Any]:
            for data in get(batch_size):
                self._expect(data)
                yield data

        model.rollout_buffer.get = recorded

    def _unwatch(self) -> None:
        model, loop = self.loop.algorithm, self.loop
        if loop.max_grad_norm is not None:
            model.max_grad_norm = loop.max_grad_norm
        for name, method in (("rollout_buffer", "get"), ("replay_buffer", "sample")):
            vars(getattr(model, name, None) or self).pop(method, None)

    def _expect(self, data: Any) -> None:
        """Announce a minibatch of SB3, of which every step is an example."""
        loop = self.loop
        actions = data.actions
        if not loop.network.on_policy and isinstance(loop.algorithm.action_space, spaces.Box):
            actions = torch.as_tensor(
                loop.algorithm.policy.unscale_action(actions.cpu().numpy()), device=actions.device
            )
        obs = data.observations
        rows = {n: x[None] for n, x in obs.items()} if isinstance(obs, Mapping) else obs[None]
        batch = loop.batch(rows, actions[None])
        mask = getattr(data, "mask", None)  # of a recurrent policy's padded sequences
        loop.minibatch = batch if mask is None else batch[mask > 0.5]
        loop.updater.expect(loop.minibatch)
