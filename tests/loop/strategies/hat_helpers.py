"""Networks for HAT's tests: of many kinds, and small ones whose mask is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from architecture_helpers import told
from loop_helpers import (
    FixedLearner,
    FlatNet,
    stream,
    update,
    vector_batch,
)
from torch import Tensor, nn

from everloop.agents import MLP, Agent, ResNet18
from everloop.contract import Task
from everloop.loop import HAT, Batch, Categorical, Learner, SupervisedLearner, Training


class ToldLearner(FixedLearner):
    """Without a world, but told the task."""

    task_aware = True


class Named:
    """A task."""

    def __init__(self, id: int) -> None:
        self.id, self.name = id, f"task {id}"


class Residual(nn.Module):
    """x + f(x) over units of two layers, as in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        result: Tensor = self.last(torch.relu(x + self.second(x)))
        return result


class Features(nn.Module):
    """`layers` on images as channels, from 0 to 1, and how many features come out."""

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


def units_that_are_not_0_when_off() -> nn.Module:
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


def momentum(learner: SupervisedLearner) -> SupervisedLearner:
    optimizer = torch.optim.SGD(
        learner.module.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3
    )
    return SupervisedLearner(learner.module, learner.world, optimizer=optimizer, max_grad_norm=0.5)


LEARNERS: dict[str, Callable[[], SupervisedLearner]] = {
    "mlp": lambda: told(MLP((8, 8, 1), (16, 16)), 1e-2),
    "convolutions": lambda: told(convolutions(), 1e-2),
    "sigmoid and layer norm": lambda: told(units_that_are_not_0_when_off(), 1e-2),
    "residual blocks and group norm": lambda: told(ResNet18((8, 8, 1), 4, "group")),
    "attention": agent_learner,
    "momentum and weight decay": lambda: momentum(told(MLP((8, 8, 1), (40, 40)))),
}
ANYWHERE = pytest.mark.parametrize("name", LEARNERS)


def quick(**settings: Any) -> HAT:
    """Masks that are learned within a few steps; of so few units each must be cheap."""
    return HAT(**{"rate": 0.1, "period": 4, "sparsity": 0.05} | settings)


def layered(
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **settings: Any
) -> tuple[ToldLearner, HAT]:
    """Two hidden layers in double precision, and a mask over their units."""
    torch.manual_seed(0)
    net = FlatNet(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "x"
    ).double()
    learner, hat = (
        ToldLearner(net, Categorical(3), optimizer(net.parameters(), lr=0.1)),
        quick(**settings),
    )
    learner.attach([hat])
    return learner, hat


def batches(count: int, seed: int = 0) -> Iterator[Batch]:
    for i in range(count):
        yield vector_batch(8, 4, 3, seed=100 * seed + i)


def learn(learner: Learner, hat: HAT, task: int, steps: int = 12) -> None:
    named: Task = Named(task)
    hat.begin_task(named, learner)
    for batch in batches(steps, task):
        update(learner, batch)
    hat.end_task(named, list(batches(1, task)), learner)


def named(learner: Learner) -> dict[str, Tensor]:
    return {
        name.removeprefix("layers."): p.detach().clone()
        for name, p in learner.module.named_parameters()
    }


def mask(learner: Learner, layer: int) -> Tensor:
    return learner.module.get_submodule(f"layers.{layer}").get_buffer("unit_mask")
