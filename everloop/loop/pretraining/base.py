"""The base class of meta-training, which sets the initial weights of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from everloop.contract import World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.learners.learner import Learner
from everloop.loop.model import Model
from everloop.loop.strategies.base import check_range
from everloop.loop.world import check_finite, check_tasks, labels_of, reset_to_tasks

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], Tensor]


class Pretraining(ABC):
    """Meta-training of the initial weights on tasks of the learner's world.

    A run performs it once, before its first task. It is given to the run besides the strategies.
    Its steps, updates and presentations are counted as those of the run.

    Args:
        tasks: IDs of the tasks for meta-training, at least one. For a fair result choose tasks that
            are not learned afterwards; with all tasks the result is only an upper bound.
        inner_lr: Learning rate of the adaptation steps within a task, 0 or more.
        outer_lr: Step size of the update of the initial weights in each iteration, 0 or more.
        adaptation_steps: Adaptation steps on a task in each iteration, 1 or more.
        iterations: Iterations of meta-training before the first task, 0 or more; 0 is plain
            training.
        batches: Batches of the world averaged in each loss of an iteration, 1 or more.
        seed: Seed for the tasks and examples drawn in meta-training, 0 or more.

    Raises:
        ValueError: If a number is out of its range.
    """

    name: ClassVar[str]
    """Name on the command line and in messages."""

    outer_losses: ClassVar[int] = 0
    """Losses of each iteration besides those of the adaptation steps."""

    def __init__(
        self,
        tasks: Sequence[int] = (),
        inner_lr: float = 0.05,
        outer_lr: float = 0.5,
        adaptation_steps: int = 5,
        iterations: int = 200,
        batches: int = 1,
        seed: int = 0,
    ) -> None:
        check_range("inner_lr", inner_lr, 0)
        check_range("outer_lr", outer_lr, 0)
        check_range("adaptation_steps", adaptation_steps, 1)
        check_range("iterations", iterations, 0)
        check_range("batches", batches, 1)
        self.inner_lr, self.outer_lr = inner_lr, outer_lr
        self.adaptation_steps, self.iterations = adaptation_steps, iterations
        self.batches, self.tasks = batches, list(tasks)
        self.rng = np.random.default_rng(seed)

    def check(self, learner: Learner) -> None:
        """Check, before training, that it works with `learner`.

        Raises:
            ValueError: If the world reveals no labels, or if tasks are missing or do not exist.
        """
        if not learner.labelled:
            raise ValueError(f"{self.name} needs labelled examples; use it with a stream")
        known = [task.id for task in learner.world.tasks]
        if not self.tasks and self.iterations:
            raise ValueError(
                f"{self.name}.tasks is empty; give the IDs of the tasks for meta-training, best of "
                f"tasks that are not learned afterwards, from {known[0]} to {known[-1]}"
            )
        for task in self.tasks:
            if task not in known:
                raise ValueError(
                    f"{self.name}.tasks contains {task}; choose from {', '.join(map(str, known))}"
                )

    def note(self, world: World) -> str:
        """Return a note on its number of world steps."""
        losses = self.iterations * (self.adaptation_steps + self.outer_losses)
        steps = losses * self.batches * world.num_envs
        tasks = ", ".join(map(str, self.tasks))
        return f"{self.name} takes {steps} steps on tasks {tasks} before training; they are counted"

    def run(self, learner: Learner) -> None:
        """Meta-train the weights of `learner` in its world."""
        for _ in range(self.iterations):
            task = int(self.rng.choice(self.tasks))
            loss = _loss_of_task(learner, task, self.batches, int(self.rng.integers(2**31)))
            losses = [loss] * (self.adaptation_steps + self.outer_losses)
            self.improve(learner, losses)
            learner.tally.updates += len(losses)

    @abstractmethod
    def improve(self, model: Model, losses: Sequence[Loss]) -> None:
        """Perform one iteration of meta-training.

        Args:
            model: The model whose weights are meta-trained.
            losses: One loss for each of the `adaptation_steps`, and `outer_losses` more. All are
                losses of the same task.
        """

    def adapted(
        self, model: Model, losses: Sequence[Loss], create_graph: bool
    ) -> dict[str, Tensor]:
        """Return the weights after one step of plain gradient descent on each loss.

        Args:
            model: The model whose weights are adapted. They are unchanged.
            losses: The losses of the steps, in order.
            create_graph: Keep the graph of the steps, for gradients with respect to the initial
                weights.
        """
        own = model.weights().items()
        weights: dict[str, Tensor] = {
            name: w if create_graph else w.detach().clone().requires_grad_() for name, w in own
        }
        for loss in losses:
            gradients = torch.autograd.grad(
                loss(weights), list(weights.values()), create_graph=create_graph, allow_unused=True
            )
            steps = [
                (name, w, g)
                for (name, w), g in zip(weights.items(), gradients, strict=True)
                if g is not None
            ]
            if create_graph:
                weights |= {name: w - self.inner_lr * g for name, w, g in steps}
            elif steps:
                adapted = [w for _, w, _ in steps]
                with torch.no_grad():
                    torch._foreach_add_(adapted, [g for *_, g in steps], alpha=-self.inner_lr)
        return weights


def _loss_of_task(learner: Learner, task: int, batches: int, seed: int) -> Loss:
    """Return a function from weights to the mean loss over the next `batches` batches of `task`.

    Each call steps the world with the guesses of the network with the given weights.
    """
    world = learner.world
    obs, played = reset_to_tasks(world, [task], seed)
    start = torch.ones(1, len(played), dtype=torch.bool, device=learner.device)

    def loss(weights: Weights) -> Tensor:
        nonlocal obs
        losses: list[Tensor] = []
        for _ in range(batches):
            check_finite(obs, learner.steps)
            tensors = {name: to_tensor(value[None], learner.device) for name, value in obs.items()}
            outputs = learner.outputs_with(Batch(tensors, start), weights)
            guess = learner.likelihood.mode(outputs[0].detach()).cpu().numpy()
            obs, _, _, _, info = world.step(guess)
            check_tasks(world, info, played)
            labels = to_tensor(labels_of(info), learner.device)
            losses.append(learner.loss_of(outputs, labels[None]))
            learner.steps += len(labels)
            learner.tally.presentations += len(labels)
        return torch.stack(losses).mean()

    return loss
