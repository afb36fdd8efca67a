"""The learner of streams: labels are revealed after every guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from everloop.contract import NetworkOutput, Observation, World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.augment import AUGMENTATIONS
from everloop.loop.learners.learner import Learner
from everloop.loop.learners.learning_rate import RATES
from everloop.loop.learners.training import Training
from everloop.loop.likelihood import Categorical, TokenCategorical, likelihood_for
from everloop.loop.state import packed, restore
from everloop.loop.strategies.base import Strategy
from everloop.loop.world import check_finite, labels_of, reset_to_tasks

LOG_EVERY = 20  # updates
POSITION = ("counts", "_obs", "_task", "_start", "_batches", "_done", "_losses")
"""What says where a learner is in its phase: the label counts so far, what the world shows, batches
in all and done, losses to report.
"""
Recalled = tuple[
    Strategy, Batch, NetworkOutput
]  # who recalls it, the examples, the network's output for them


class SupervisedLearner(Learner):
    """Cross-entropy on the labels that a world of `info["label"]` reveals; one update a step of the
    world, or several.

    The guess comes from the same forward pass that is then learned from; of tags the mean is over
    all tokens that have one. Every example is a sequence of its own (T = 1, empty memory): what
    other images lie near it never helps to tell its class.

    training: rate, precision, device and the like.
    optimizer: of the module's weights; Adam at `training.learning_rate` if None.
    Raises ValueError for options that do not fit the world.
    """

    mixed: bool = False  # forward passes in bfloat16
    counts: Tensor | None = None  # of each label so far, for a balanced softmax
    images: Sequence[str] = ()  # modalities to augment
    labelled = True
    recalls_ahead = True

    def __init__(
        self,
        module: nn.Module,
        world: World,
        training: Training = Training(),  # noqa: B008
        optimizer: torch.optim.Optimizer | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.module, self.world, self.training = module, world, training
        self.likelihood = likelihood_for(world.single_action_space)
        self.notes = training.prepare(module)
        self.optimizer = optimizer or training.make_optimizer(module)
        self.rate = RATES[training.rate](self.optimizer)
        self.mixed = training.precision == "bfloat16" and torch.amp.is_autocast_available(
            self.device.type
        )
        if training.balanced:
            if not isinstance(self.likelihood, Categorical):
                raise ValueError("balanced is True; it needs one class for each example")
            self.counts = torch.zeros(self.likelihood.size(), device=self.device)
        if training.augment != "none":
            self.images = _images(world)
            if not self.images:
                self.notes.append(
                    f"augment {training.augment} does nothing: the world shows no images"
                )
        self.max_grad_norm, self.accumulate = max_grad_norm, training.accumulate
        self._obs: Observation = {}
        self._task = self._start = torch.zeros(0)
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
        heads = getattr(output, "heads", None)
        single = {"prediction": output.prediction.float()} | (
            {} if heads is None else {"heads": heads.float()}
        )
        return output._replace(**single), state  # type: ignore[attr-defined]

    def loss_of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of the labels."""
        if (
            self.counts is not None and self.counts.any()
        ):  # before the first batch nothing is known of them
            outputs = outputs + self.counts.log()
        if isinstance(
            self.likelihood, Categorical
        ):  # the same number from one kernel, a fifth of a small network's step cheaper
            return F.cross_entropy(outputs.flatten(0, 1), target.flatten())
        terms = (
            (target >= 0).sum().clamp(min=1)
            if isinstance(self.likelihood, TokenCategorical)
            else outputs[..., 0].numel()
        )
        return -self.likelihood.log_prob(outputs, target).sum() / terms

    def targets(self, batch: Batch) -> Tensor:
        """The labels."""
        assert batch.target is not None, "a batch of a stream holds labels"
        return batch.target

    def observed(self, batch: Batch) -> Tensor | None:
        return batch.target

    def act(
        self,
        obs: Observation,
        state: Tensor,
        start: npt.NDArray[np.bool_],
        generator: torch.Generator | None = None,
    ) -> tuple[npt.NDArray[Any], Tensor]:
        """As every learner, but with an empty memory at each step, as in training."""
        return super().act(obs, state, np.ones_like(start), generator)

    def augmented(self, batch: Batch) -> Batch:
        if not self.images:
            return batch
        view = AUGMENTATIONS[self.training.augment]
        return replace(
            batch,
            obs={
                name: view(value) if name in self.images else value
                for name, value in batch.obs.items()
            },
        )

    def updates(self, steps: int) -> int:
        batches = -(-steps // self.world.num_envs)
        return -(-batches // self.training.accumulate) * self.training.updates_per_batch

    def begin(self, tasks: Sequence[int], steps: int) -> None:
        self._obs, played = reset_to_tasks(self.world, tasks)
        self._task = to_tensor(played, self.device)
        self._start = torch.ones(1, len(played), dtype=torch.bool, device=self.device)
        self._batches, self._done = -(-steps // self.world.num_envs), 0
        self._losses = []
        self.rate.begin(self._batches * self.training.updates_per_batch)
        self.updater.drop_parts()

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
        shown = self._shown()
        seen = self.augmented(shown)
        output, recalled = self._look(seen)
        label = self._guess(output)
        target = label[None]
        if self.strategies:
            fresh = replace(shown, target=target, output=output.prediction.detach())
            for strategy in self.strategies:
                strategy.observe(fresh, self)
        parts = self.training.accumulate
        together = min(
            parts, self._batches - self._done // parts * parts
        )  # the last step of a phase may have fewer parts
        self._losses.append(self._update(seen, target, output, recalled, together))
        for _ in range(self.training.updates_per_batch - 1):
            seen = self.augmented(shown)
            self._losses.append(self._update(seen, target, *self._look(seen), together))
        self.steps += len(label)
        self._done += 1
        if len(self._losses) >= LOG_EVERY or self._done == self._batches:
            self._report(sum(self._losses) / len(self._losses))
            self._losses.clear()
        return len(label)

    def _shown(self) -> Batch:
        """What the world shows now."""
        check_finite(self._obs, self.steps)
        obs = {name: to_tensor(value[None], self.device) for name, value in self._obs.items()}
        return Batch(obs, self._start, task=self._task)

    def _guess(self, output: NetworkOutput) -> Tensor:
        """Step the world with the most likely labels of `output`; returns the labels it reveals,
        (B, ...).
        """
        guess = self.likelihood.mode(output.prediction[0].detach()).cpu().numpy()
        self._obs, _, _, _, info = self.world.step(guess)
        label = to_tensor(labels_of(info), self.device)
        if self.counts is not None:
            self.counts += torch.bincount(label, minlength=len(self.counts))
        return label

    def _look(self, seen: Batch) -> tuple[NetworkOutput, list[Recalled]]:
        """The output for what the world shows, and what strategies recall with the outputs for it,
        from one forward pass.
        """
        recalled = self.updater.recall() if self.recalls_ahead else []
        if not recalled:
            return self.forward(seen), []
        output, *others = self.forward_joined([seen, *(stored for _, stored in recalled)])
        return output, [
            (strategy, stored, other)
            for (strategy, stored), other in zip(recalled, others, strict=True)
        ]

    def _update(
        self,
        seen: Batch,
        target: Tensor,
        output: NetworkOutput,
        recalled: Sequence[Recalled],
        parts: int,
    ) -> float:
        """One step along the loss of `output` and what the strategies add to it; returns
        the loss.
        """
        loss = self.loss_of(output.prediction, target)
        if self.strategies:
            self.minibatch = replace(seen, target=target, output=output.prediction.detach())
            for extra in self.updater.output_losses(self.minibatch, output):
                loss = loss + extra
            for strategy, stored, other in recalled:
                loss = loss + strategy.recall_loss(self, stored, other)
        self.rate.next()
        return self.updater.step(loss, parts)

    def _report(self, loss: float) -> None:
        self.rate.average(loss)
        norm = self.gradient_norm()
        scalars = {"train/loss": loss, "train/learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.on_log(scalars | ({} if norm is None else {"train/gradient_norm": norm}))


def _images(world: World) -> list[str]:
    """The modalities that are images, uint8 (H, W, C)."""
    space = world.single_observation_space
    modalities = space.spaces if isinstance(space, spaces.Dict) else {}
    return [
        name
        for name, part in modalities.items()
        if part.dtype == np.uint8 and len(part.shape or ()) == 3
    ]
