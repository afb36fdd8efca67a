"""Networks of many kinds for the tests of HAT, and a small one with a known mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from architecture_helpers import task_aware_learner
from loop_helpers import (
    FixedLearner,
    FlatNet,
    stream,
    update,
    vector_batch,
)
from strategy_helpers import Named
from torch import Tensor, nn

from everloop.agents import MLP, Agent, ResNet18
from everloop.contract import Task
from everloop.loop import HAT, Batch, Categorical, Learner, SupervisedLearner, Training


class TaskAwareLearner(FixedLearner):
    """Task-aware, without a world."""

    task_aware = True


class Residual(nn.Module):
    """A residual block: x + f(x) over the units of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        result: Tensor = self.last(torch.relu(x + self.second(x)))
        return result


class Features(nn.Module):
    """Applies `layers` to images scaled to [0, 1], channels first; returns `size` features."""

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers, self.size = layers, size

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.layers(x.movedim(-1, 1).float() / 255)
        return rows


def convolutions() -> nn.Module:
    return Features(
        nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 12),
            nn.Tanh(),
        ),
        12,
    )


def layers_with_nonzero_off_units() -> nn.Module:
    return Features(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 12),
            nn.Sigmoid(),
            nn.Linear(12, 12),
            nn.LayerNorm(12),
            nn.ReLU(),
            nn.Linear(12, 12),
        ),
        12,
    )


def agent_learner() -> SupervisedLearner:
    torch.manual_seed(0)
    world = stream(label_space="within_task", task_cue=True)
    network = Agent(
        world.single_observation_space,
        2,
        recurrent=False,
        head_per_task=True,
        token_size=8,
        attention_heads=2,
    )
    return SupervisedLearner(network, world, Training(learning_rate=1e-2))


def with_momentum(learner: SupervisedLearner) -> SupervisedLearner:
    optimizer = torch.optim.SGD(
        learner.module.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3
    )
    return SupervisedLearner(learner.module, learner.world, optimizer=optimizer, max_grad_norm=0.5)


LEARNERS: dict[str, Callable[[], SupervisedLearner]] = {
    "mlp": lambda: task_aware_learner(MLP((8, 8, 1), (16, 16)), 1e-2),
    "convolutions": lambda: task_aware_learner(convolutions(), 1e-2),
    "sigmoid and layer norm": lambda: task_aware_learner(layers_with_nonzero_off_units(), 1e-2),
    "residual blocks and group norm": lambda: task_aware_learner(ResNet18((8, 8, 1), 4, "group")),
    "attention": agent_learner,
    "momentum and weight decay": lambda: with_momentum(
        task_aware_learner(MLP((8, 8, 1), (40, 40)))
    ),
}
EVERY_NETWORK = pytest.mark.parametrize("name", LEARNERS)


def quick_hat(**settings: Any) -> HAT:
    """HAT that learns its masks within a few steps, at a low price for few units."""
    return HAT(**{"rate": 0.1, "period": 4, "sparsity": 0.05} | settings)


def masked_learner(
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **settings: Any
) -> tuple[TaskAwareLearner, HAT]:
    """Two hidden layers in double precision, with a mask over their units."""
    torch.manual_seed(0)
    net = FlatNet(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "x"
    ).double()
    learner = TaskAwareLearner(net, Categorical(3), optimizer(net.parameters(), lr=0.1))
    hat = quick_hat(**settings)
    learner.attach([hat])
    return learner, hat


def batches(count: int, seed: int = 0) -> Iterator[Batch]:
    for i in range(count):
        yield vector_batch(8, 4, 3, seed=100 * seed + i)


def learn_hat_task(learner: Learner, hat: HAT, task: int, steps: int = 12) -> None:
    begun: Task = Named(task)
    hat.begin_task(begun, learner)
    for batch in batches(steps, task):
        update(learner, batch)
    hat.end_task(begun, list(batches(1, task)), learner)


def named_weights(learner: Learner) -> dict[str, Tensor]:
    return {
        name.removeprefix("layers."): p.detach().clone()
        for name, p in learner.module.named_parameters()
    }


def mask(learner: Learner, layer: int) -> Tensor:
    return learner.module.get_submodule(f"layers.{layer}").get_buffer("unit_mask")
