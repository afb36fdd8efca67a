"""The learner of labelled streams, where the world reveals a label after every guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from everloop.contract import NetworkOutput, Observation, Output, World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.augment import AUGMENTATIONS
from everloop.loop.learners.labelled import Labelled
from everloop.loop.learners.learner import Learner
from everloop.loop.learners.learning_rate import RATES
from everloop.loop.learners.reset import check_state, reset_state
from everloop.loop.learners.shown import Recent, ShownRows
from everloop.loop.learners.training import Training
from everloop.loop.likelihood import likelihood_for
from everloop.loop.state import packed, restore
from everloop.loop.strategies.base import Forward, Strategy
from everloop.loop.world import (
    check_finite,
    check_tasks,
    labels_of,
    mixed_tasks,
    reset_to_phase,
    reset_to_tasks,
    seed_at,
)

LOG_EVERY = 20
"""Updates averaged in each log entry."""
POSITION = (
    "counts",
    "_obs",
    "_played",
    "_shuffled",
    "_task",
    "_start",
    "_batches",
    "_done",
    "_losses",
)
"""Attributes that hold the learner's position in a phase."""

Replayed = list[tuple[Strategy, Forward]]


class SupervisedLearner(Labelled, Learner):
    """Learns labels from a stream by minimizing the cross-entropy of `info["label"]`.

    The guess that goes to the world and the loss come from one forward pass. Every example is a
    sequence of one step with an empty memory. For tags, the loss is the mean over all tokens that
    have a tag.

    Args:
        module: The network.
        world: A labelled stream.
        training: Learning rate, precision, device and other options of training.
        optimizer: Optimizer of the module's weights; None for Adam at `training.learning_rate`.
        max_grad_norm: Norm to which the gradient is clipped, above 0; None for no clipping.

    Raises:
        ValueError: If an option of `training` does not fit the world.
    """

    mixed: bool = False
    """True if forward passes use bfloat16."""

    counts: Tensor | None = None
    """How often each label has been seen, (P,), for a balanced softmax; None without one."""

    images: Sequence[str] = ()
    """Modalities to augment."""

    def __init__(
        self,
        module: nn.Module,
        world: World,
        training: Training = Training(),  # noqa: B008
        optimizer: torch.optim.Optimizer | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.module, self.world = module, world
        if not self.units.same:
            raise ValueError(
                f"action space is {world.single_action_space}; labels and guesses must count from 0"
            )
        self.training = training
        self.likelihood = likelihood_for(world.single_action_space)
        self.notes = training.prepare(module)
        self.optimizer = optimizer or training.make_optimizer(module)
        if training.reset_optimizer:
            self.notes += check_state(self.optimizer)
        self.rate = RATES[training.rate](self.optimizer)
        self.mixed = training.precision == "bfloat16" and torch.amp.is_autocast_available(
            self.device.type
        )
        if training.balanced:
            if self.classes is None:
                raise ValueError("balanced is True; it needs one class for each example")
            self.counts = torch.zeros(self.classes, device=self.device)
        if training.augment != "none":
            self.images = _images(world)
            if not self.images:
                self.notes.append(
                    f"augment {training.augment} does nothing: the world shows no images"
                )
        self.max_grad_norm, self.accumulate = max_grad_norm, training.accumulate
        can_show = world.show(world.tasks[0].id, np.zeros(0, np.int64)) is not None
        self.shown = ShownRows(self._read) if can_show else Recent()
        self._obs: Observation = {}
        self._played: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._task = self._start = torch.zeros(0)
        self._shuffled: list[int] = []  # tasks that are shuffled together
        self._batches = self._done = 0
        self._losses: list[float] = []
        self.attach([])

    def apply(
        self, module: nn.Module, obs: Mapping[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[NetworkOutput, Tensor]:
        if not self.mixed:
            return super().apply(module, obs, state, start)
        with torch.autocast(self.device.type, torch.bfloat16):
            output, state = super().apply(module, obs, state, start)
        heads = None if output.heads is None else output.heads.float()
        return Output(output.prediction.float(), output.value, heads), state

    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the labels."""
        if self.counts is not None and self.counts.any():  # all 0 before the first batch
            outputs = outputs + self.counts.log()
        return super().loss_of(outputs, target)

    def choose(
        self,
        obs: Observation,
        state: Tensor,
        start: npt.NDArray[np.bool_],
        generator: torch.Generator | None = None,
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """Choose as every learner does, but with an empty memory at each step, as in training."""
        return super().choose(obs, state, np.ones_like(start), generator)

    def augmented(self, batch: Batch) -> Batch:
        if not self.images:
            return batch
        view = AUGMENTATIONS[self.training.augment]
        changed = {name: view(batch.obs[name]) for name in batch.obs if name in self.images}
        return replace(batch, obs={**batch.obs, **changed})

    def updates(self, steps: int) -> int:
        batches = -(-steps // self.world.num_envs)
        return -(-batches // self.training.accumulate) * self.training.updates_per_batch

    def begin(self, tasks: Sequence[int], steps: int) -> None:
        if self._begin_phase(tasks) and self.training.reset_optimizer:
            reset_state(self.optimizer)
        self._obs, self._played = reset_to_phase(self.world, tasks, self._place)
        self._shuffled = mixed_tasks(self.world, tasks)
        self._task = to_tensor(self._played, self.device)
        self._start = torch.ones(1, len(self._played), dtype=torch.bool, device=self.device)
        self._batches, self._done = -(-steps // self.world.num_envs), 0
        self._losses = []
        self.rate.begin(self._batches * self.training.updates_per_batch)
        self.updater.drop_parts()

    def reset_world(self) -> None:
        assert self._tasks is not None, "a phase has begun"
        self._obs, self._played = reset_to_tasks(self.world, self._tasks, seed_at(self._place))
        self._task = to_tensor(self._played, self.device)

    def scale_rate(self, factor: float) -> None:
        self.rate.multiply(factor / self.rate_factor)
        super().scale_rate(factor)

    def learned(self) -> dict[str, Any]:
        return {**super().learned(), "rate": self.rate.state_dict()}

    def load_learned(self, state: Mapping[str, Any]) -> None:
        super().load_learned(state)
        self.rate.load_state_dict(state["rate"])

    def position(self) -> dict[str, Any]:
        return {
            **super().position(),
            "own": packed(self, POSITION),
            "updater": self.updater.state_dict(),
        }

    def load_position(self, state: Mapping[str, Any]) -> None:
        super().load_position(state)
        restore(self, state["own"])
        self.updater.load_state_dict(state["updater"])

    def advance(self) -> int:
        if self._done == self._batches:
            return 0
        unlabelled = self._current_batch()
        self._see(unlabelled)
        seen = self.augmented(unlabelled)
        output, replayed = self._look(seen)
        label, info = self._guess(output)
        target = label[None]
        # `replace` would take twice as long, and this is done in every step
        fresh = Batch(
            unlabelled.obs,
            unlabelled.start,
            target,
            task=unlabelled.task,
            output=output.prediction.detach(),
        )
        self.shown.add(fresh, info)
        for strategy in self.strategies:
            strategy.observe(fresh, self)
        # The last step of a phase may average fewer batches.
        parts = self.training.accumulate
        together = min(parts, self._batches - self._done // parts * parts)
        self._losses.append(self._update(seen, target, output, replayed, together))
        for _ in range(self.training.updates_per_batch - 1):
            seen = self.augmented(unlabelled)
            self._losses.append(self._update(seen, target, *self._look(seen), together))
        self.steps += len(label)
        self._done += 1
        if len(self._losses) >= LOG_EVERY or self._done == self._batches:
            self._report(sum(self._losses) / len(self._losses))
            self._losses.clear()
        return len(label)

    def _read(self, task: int, rows: npt.NDArray[np.int64]) -> Batch:
        """Return examples of the world's data set, without any effect on the world."""
        shown = self.world.show(task, rows)
        assert shown is not None, "the world can show its examples again"
        obs, labels = shown
        return Batch(
            {name: to_tensor(value[None], self.device) for name, value in obs.items()},
            torch.ones(1, len(rows), dtype=torch.bool, device=self.device),
            target=to_tensor(labels[None], self.device),
            task=torch.full((len(rows),), task, device=self.device),
        )

    def _current_batch(self) -> Batch:
        """Return the world's current observations as a batch without labels."""
        check_finite(self._obs, self.steps)
        # `self.device` would walk through the network in every step
        device = self._start.device
        obs = {name: to_tensor(value[None], device) for name, value in self._obs.items()}
        return Batch(obs, self._start, task=self._task)

    def _guess(self, output: NetworkOutput) -> tuple[Tensor, dict[str, Any]]:
        """Step the world with the most likely labels. Return the true ones, (B, ...), and info."""
        guess = self.likelihood.mode(output.prediction[0].detach()).cpu().numpy()
        self._obs, rewards, _, _, info = self.world.step(guess)
        check_tasks(self.world, info, self._played, self._shuffled)
        label = to_tensor(labels_of(info), self._start.device)
        self.tally.right += float(rewards.sum())
        self.tally.guessed += len(rewards)
        if self._shuffled:
            self._task = to_tensor(info["task"], self._start.device)
        if self.counts is not None:
            self.counts += torch.bincount(label, minlength=len(self.counts))
        return label, info

    def _look(self, seen: Batch) -> tuple[NetworkOutput, Replayed]:
        """Return the outputs for the fresh batch and for replayed examples, from one pass."""
        drawn = self.updater.recall()
        if not drawn:
            return self.forward(seen), []
        output, *others = self.forward_joined([seen, *(stored for _, stored in drawn)])
        pairs = zip(drawn, others, strict=True)
        return output, [(strategy, Forward(stored, out)) for (strategy, stored), out in pairs]

    def _update(
        self, batch: Batch, target: Tensor, output: NetworkOutput, replayed: Replayed, parts: int
    ) -> float:
        """Take one step along the total loss of `batch`; return the loss."""
        loss = self.loss_of(output.prediction, target)
        if self.strategies:
            batch = replace(batch, target=target, output=output.prediction.detach())
            loss = self.updater.total_loss(loss, Forward(batch, output), replayed)
        self.rate.next()
        return self.updater.step(loss, batch, parts)

    def _report(self, loss: float) -> None:
        self.rate.average(loss)
        norm = self.gradient_norm()
        scalars = {"train/loss": loss, "train/learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.on_log(scalars | ({} if norm is None else {"train/gradient_norm": norm}))


def _images(world: World) -> list[str]:
    """Return the names of the modalities that are images, uint8 (H, W, C)."""
    space = world.single_observation_space
    modalities = space.spaces if isinstance(space, spaces.Dict) else {}
    return [
        name
        for name, part in modalities.items()
        if part.dtype == np.uint8 and len(part.shape or ()) == 3
    ]
