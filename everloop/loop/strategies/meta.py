"""Reptile and MAML: meta-trained initial weights before the first task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from everloop.contract import Task, World
from everloop.loop.batch import Batch, to_tensor
from everloop.loop.model import Model
from everloop.loop.strategies.base import Strategy, Traits, check_range
from everloop.loop.world import check_finite, labels_of, reset_to_tasks

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], Tensor]


class _Pretraining(Strategy):
    """Meta-training of the initial weights on the world's tasks, before its first task begins.

    Args:
        inner_lr: Learning rate of the adaptation steps within a task, 0 or more.
        outer_lr: Step size of the initial weights in each iteration, 0 or more.
        adaptation_steps: Adaptation steps on a task in each iteration, 1 or more.
        iterations: Iterations of meta-training before the first task, 0 or more; 0 is plain
            training.
        batches: Batches of the world averaged in each loss of an iteration, 1 or more.
        tasks: IDs of the tasks for meta-training; all tasks of the world if none. All tasks is fair
            only as an upper bound; else give tasks that are not learned afterwards.
        seed: Seed for the tasks and examples drawn in meta-training, 0 or more.

    Raises:
        ValueError: If a number is out of its range; on attaching, if a task does not exist or the
            model has no labelled world to draw examples from.
    """

    traits: ClassVar[Traits] = Traits(boundaries=False, control=False, plasticity=True)
    state = ("done", "rng")

    def __init__(
        self,
        inner_lr: float = 0.05,
        outer_lr: float = 0.5,
        adaptation_steps: int = 5,
        iterations: int = 200,
        batches: int = 1,
        tasks: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        check_range("inner_lr", inner_lr, 0)
        check_range("outer_lr", outer_lr, 0)
        check_range("adaptation_steps", adaptation_steps, 1)
        check_range("iterations", iterations, 0)
        check_range("batches", batches, 1)
        self.inner_lr, self.outer_lr, self.adaptation_steps = inner_lr, outer_lr, adaptation_steps
        self.iterations, self.batches, self.tasks = iterations, batches, tasks
        self.rng = np.random.default_rng(seed)
        self.done = False

    @property
    def active(self) -> bool:
        return self.iterations > 0

    def check(self, model: Model) -> None:
        if not model.labelled:
            raise ValueError(
                "meta-training needs labelled examples; in control use another strategy"
            )
        known = [task.id for task in _world(model).tasks]
        for task in self.tasks or []:
            if task not in known:
                raise ValueError(f"tasks hold {task}, allowed: {', '.join(map(str, known))}")

    def begin_task(self, task: Task, model: Model) -> None:
        if self.done:
            return
        self.done = True
        ids = self.tasks or [t.id for t in _world(model).tasks]
        for _ in range(self.iterations):
            chosen = int(self.rng.choice(ids))
            loss = _played(model, chosen, self.batches, int(self.rng.integers(2**31)))
            self.improve(model, [loss] * (self.adaptation_steps + 1))

    @abstractmethod
    def improve(self, model: Model, losses: Sequence[Loss]) -> None:
        """One iteration: `adaptation_steps` losses of a task to adapt to, and one more."""

    def adapted(
        self, model: Model, losses: Sequence[Loss], create_graph: bool
    ) -> dict[str, Tensor]:
        """The weights after a step of plain gradient descent on each loss."""
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
                with torch.no_grad():
                    torch._foreach_add_(
                        [w for _, w, _ in steps], [g for *_, g in steps], alpha=-self.inner_lr
                    )
        return weights


class Reptile(_Pretraining):
    """Meta-training that moves the initial weights towards weights adapted to single tasks.

        w <- w + outer_lr (w' - w)                                  (Nichol et al. 2018, eq. 1)

    w' are the weights after `adaptation_steps` steps of plain gradient descent on a task.

    Args:
        inner_lr: Learning rate of the adaptation steps within a task, 0 or more.
        outer_lr: Step size of the initial weights towards the adapted ones, 0 or more.
        adaptation_steps: Adaptation steps on a task in each iteration, 1 or more.
        iterations: Iterations of meta-training before the first task, 0 or more; 0 is plain
            training.
        batches: Batches of the world averaged in each loss of an iteration, 1 or more.
        tasks: IDs of the tasks for meta-training; all tasks of the world if none. All tasks is fair
            only as an upper bound; else give tasks that are not learned afterwards.
        seed: Seed for the tasks and examples drawn in meta-training, 0 or more.
    """

    name = "reptile"

    def improve(self, model: Model, losses: Sequence[Loss]) -> None:
        adapted = self.adapted(model, losses[: self.adaptation_steps], create_graph=False)
        with torch.no_grad():
            for name, w in model.weights().items():
                w.lerp_(adapted[name], self.outer_lr)


class MAML(_Pretraining):
    """Meta-training that minimizes the loss after adaptation to a task.

        w descends along d L(w') / d w                            (Finn et al. 2017, algorithm 2)

    w' are the weights after `adaptation_steps` steps of plain gradient descent on a task, and L is
    the loss on other examples of it. One task an iteration. The derivative goes through the steps,
    second order included. The outer step is Adam's, as in the paper's experiments (section 5.1).

    Args:
        inner_lr: Learning rate of the adaptation steps within a task, 0 or more.
        outer_lr: Learning rate of Adam on the initial weights, 0 or more.
        adaptation_steps: Adaptation steps on a task in each iteration, 1 or more.
        iterations: Iterations of meta-training before the first task, 0 or more; 0 is plain
            training.
        batches: Batches of the world averaged in each loss of an iteration, 1 or more.
        tasks: IDs of the tasks for meta-training; all tasks of the world if none. All tasks is fair
            only as an upper bound; else give tasks that are not learned afterwards.
        seed: Seed for the tasks and examples drawn in meta-training, 0 or more.
    """

    name = "maml"

    def __init__(
        self,
        inner_lr: float = 0.05,
        outer_lr: float = 1e-3,
        adaptation_steps: int = 5,
        iterations: int = 200,
        batches: int = 1,
        tasks: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(inner_lr, outer_lr, adaptation_steps, iterations, batches, tasks, seed)

    def begin_task(self, task: Task, model: Model) -> None:
        if not self.done:
            self.adam = torch.optim.Adam(model.weights().values(), self.outer_lr, fused=True)
        super().begin_task(task, model)

    def improve(self, model: Model, losses: Sequence[Loss]) -> None:
        for w, g in zip(model.weights().values(), self.gradient(model, losses), strict=True):
            w.grad = g
        self.adam.step()
        self.adam.zero_grad()

    def gradient(self, model: Model, losses: Sequence[Loss]) -> Sequence[Tensor | None]:
        """d L(w') / d w for every weight; None for those on which nothing depends."""
        with sdpa_kernel(SDPBackend.MATH):  # attention's faster ways have no second derivative
            adapted = self.adapted(model, losses[: self.adaptation_steps], create_graph=True)
            return torch.autograd.grad(
                losses[-1](adapted), list(model.weights().values()), allow_unused=True
            )


def _world(model: Model) -> World:
    """The model's world. Raises ValueError for an attached loop, which has none."""
    if model.world is None:
        raise ValueError(
            "meta-training draws examples from a world, which an attached loop does not have; use "
            "a scenario"
        )
    return model.world


def _played(model: Model, task: int, batches: int, seed: int) -> Loss:
    """The mean loss of a network with given weights on the next `batches` batches that the world
    shows of `task`.

    The world goes on with the guesses of that network, from the same forward pass.
    """
    world = _world(model)
    obs, played = reset_to_tasks(world, [task], seed)
    start = torch.ones(1, len(played), dtype=torch.bool, device=model.device)

    def loss(weights: Weights) -> Tensor:
        nonlocal obs
        losses: list[Tensor] = []
        for _ in range(batches):
            check_finite(obs, model.steps)
            shown = Batch(
                {name: to_tensor(value[None], model.device) for name, value in obs.items()}, start
            )
            outputs = model.outputs_with(shown, weights)
            obs, _, _, _, info = world.step(
                model.likelihood.mode(outputs[0].detach()).cpu().numpy()
            )
            losses.append(model.loss_of(outputs, to_tensor(labels_of(info), model.device)[None]))
        return torch.stack(losses).mean()

    return loss
