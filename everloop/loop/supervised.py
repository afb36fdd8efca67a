"""The learner of streams: labels are revealed after every guess."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learner import Learner, Tick
from everloop.loop.likelihood import likelihood_for
from everloop.loop.world import Arrays, World, check_finite, play

LOG_EVERY = 20  # updates


class SupervisedLearner(Learner):
    """Cross-entropy on the labels that a world of `info["label"]` reveals; one update a step of the world.

    The guess comes from the same forward pass that is then learned from. Every example is a sequence of its
    own (T = 1, empty memory): what other images lie near it never helps to tell its class.

    optimizer: Adam, fused, with learning rate `learning_rate`, unless one is given.
    """

    def __init__(
        self,
        module: nn.Module,
        world: World,
        learning_rate: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        if optimizer is None and not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}, allowed: more than 0")
        self.module, self.world = module, world
        self.optimizer = optimizer or torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)
        self.likelihood = likelihood_for(world.single_action_space)
        self.max_grad_norm = max_grad_norm
        self.attach([])

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the labels `batch.target`."""
        return self._loss(self.outputs(batch), batch)

    def _loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.target is not None, "a batch of a stream holds labels"
        return -self.likelihood.log_prob(outputs, batch.target).mean()

    def targets(self, batch: Batch) -> Tensor:
        """The labels."""
        assert batch.target is not None, "a batch of a stream holds labels"
        return batch.target

    def observed(self, batch: Batch) -> Tensor | None:
        return batch.target

    def act(
        self, obs: Arrays, state: Tensor, start: npt.NDArray[np.bool_], generator: torch.Generator | None = None
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """As every learner, but with an empty memory at each step, as in training."""
        return super().act(obs, state, np.ones_like(start), generator)

    def learn(self, tasks: Sequence[int], steps: int, tick: Tick) -> None:
        obs, played = play(self.world, tasks)
        task, copies = to_tensor(played, self.device), self.world.num_envs
        start = torch.ones(1, copies, dtype=torch.bool, device=self.device)
        losses: list[float] = []
        for _ in range(-(-steps // copies)):
            check_finite(obs, self.steps)
            shown = {name: to_tensor(value, self.device)[None] for name, value in obs.items()}
            outputs = self.outputs(Batch(shown, start))
            guess = self.likelihood.mode(outputs.detach()[0]).cpu().numpy()
            obs, _, _, _, info = self.world.step(guess)
            if "label" not in info:
                raise ValueError('the world\'s info has no "label", allowed for supervised learning: worlds that reveal it')
            label = to_tensor(np.asarray(info["label"], dtype=np.int64), self.device)[None]
            self.minibatch = Batch(shown, start, target=label, task=task)
            for strategy in self.strategies:
                strategy.observe(self.minibatch, self)
            losses.append(self.updater.step(self._loss(outputs, self.minibatch)))
            self.steps += copies
            if len(losses) == LOG_EVERY:
                self.on_scalars(self.steps, {"train/loss": sum(losses) / LOG_EVERY})
                losses.clear()
            tick(copies)
