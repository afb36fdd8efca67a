"""Tasks without a world, small networks, and pulls on weights that the tests of strategies
share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from loop_helpers import (
    FixedLearner,
    FlatNet,
    update,
    vector_batch,
)
from torch import Tensor, nn

from everloop.loop import Batch, Categorical, Gaussian, Strategy

Weights = dict[str, Tensor]


class Named(NamedTuple):
    """Any task at all."""

    id: int = 0
    name: str = "any"


class Untold(FixedLearner):
    """Has no world that could tell the task."""

    task_aware = False


class InTurn(Categorical):
    """Draws the classes in turn: the label of an example is its place in the batch."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.arange(p[..., 0].numel()).reshape(p.shape[:-1]) % self.classes


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def one_layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias)


def learner_of(
    layers: nn.Module,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    kind: Any = Untold,
) -> Any:
    module = FlatNet(layers, "x").double()
    return kind(module, InTurn(3), optimizer(module.parameters()) if optimizer else None)


def like(learner: FixedLearner, low: float, high: float, seed: int) -> dict[str, Tensor]:
    """Random numbers in [low, high], one for each weight."""
    g = torch.Generator().manual_seed(seed)
    return {
        n: low + (high - low) * torch.rand(p.shape, generator=g, dtype=p.dtype)
        for n, p in learner.weights().items()
    }


def move(learner: FixedLearner, seed: int) -> dict[str, Tensor]:
    """Put the weights elsewhere, and return where they are now."""
    there = like(learner, -1.0, 1.0, seed)
    with torch.no_grad():
        for name, p in learner.weights().items():
            p.copy_(there[name])
    return there


def edited(
    learner: FixedLearner, strategy: Strategy, batch: Batch | None = None, already: float = 0.5
) -> list[Tensor]:
    """What the strategy adds to a gradient that is there already."""
    for p in learner.weights().values():
        p.grad = torch.full_like(p, already)
    strategy.edit_gradients(batch or vector_batch(1, 1, 1), learner)
    return [p.grad - already for p in learner.weights().values() if p.grad is not None]


def snapshot(learner: FixedLearner) -> Weights:
    return {name: p.detach().clone() for name, p in learner.weights().items()}


def pull(
    learner: FixedLearner, strength: float, importance: Weights, center: Weights
) -> list[Tensor]:
    """By autograd: the gradient of strength * sum_i Omega_i (w_i - w*_i)^2."""
    w = learner.weights()
    penalty = strength * sum((importance[n] * (w[n] - center[n]) ** 2).sum() for n in w)
    return list(torch.autograd.grad(penalty, list(w.values())))  # type: ignore[arg-type]


def images(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3, 3)),
        nn.Conv2d(2, 4, 2),
        norm,
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def measured(norm: Any) -> nn.Module:
    """A batch norm that has seen something."""
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    return norm  # type: ignore[no-any-return]


NETS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "mlp": (4, lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))),
    "convolution": (
        18,
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3, 3)),
            nn.Conv2d(2, 3, 2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
    ),
    "layer norm": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
    ),
    "positions": (
        6,
        lambda: nn.Sequential(
            nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
        ),
    ),
    "a layer used twice": (
        4,
        lambda: nn.Sequential(
            shared := nn.Linear(4, 4), nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3)
        ),
    ),
    "group norm": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 3)),
    ),
    "group norm of images": (18, lambda: images(nn.GroupNorm(2, 4))),
    "batch norm": (
        4,
        lambda: nn.Sequential(
            nn.Linear(4, 5), measured(nn.BatchNorm1d(5)), nn.Tanh(), nn.Linear(5, 3)
        ),
    ),
    "batch norm of images": (18, lambda: images(measured(nn.BatchNorm2d(4)))),
    "a layer without a rule": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3)),
    ),
}


def classifier(net: str) -> tuple[FixedLearner, int]:
    """A learner, and the size of its inputs."""
    size, build = NETS[net]
    torch.manual_seed(0)
    return Untold(FlatNet(build(), "x").double().eval(), Categorical(3)), size


def by_single_examples(
    learner: FixedLearner, batch: Batch, score: Callable[[Batch], Tensor], power: int
) -> list[Tensor]:
    """The mean over examples, each a batch of its own, of the sum over scores of
    |gradient|^power.
    """
    parameters = list(learner.weights().values())
    totals = [torch.zeros_like(p) for p in parameters]
    for example in batch.split(1):
        for value in score(example)[:, 0]:
            for total, g in zip(
                totals, torch.autograd.grad(value, parameters, retain_graph=True), strict=True
            ):
                total += g.abs() ** power / len(batch)
    return totals


def gradient(learner: FixedLearner, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(learner.weights().values())))


class Unit(Gaussian):
    """y ~ N(p, 1) whose every draw lies at p + 1: the squared gradient of log p is that of p."""

    def __init__(self) -> None:
        super().__init__(1)

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return (-0.5 * (x - p) ** 2).sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return p + 1


class Regression(FixedLearner):
    """y = w x with two weights; loss = mean of (y - w x)^2 / 2."""

    def __init__(self) -> None:
        super().__init__(FlatNet(nn.Linear(2, 1, bias=False), "x").double(), Unit(), None)
        self.move([0.3, -0.2])

    def move(self, w: list[float]) -> None:
        with torch.no_grad():
            self.module.layers.weight.copy_(torch.tensor([w]))

    @property
    def w(self) -> Tensor:
        weight: Tensor = self.module.layers.weight.detach()[0].clone()
        return weight

    def take_step(self, batch: Batch) -> None:
        self.minibatch = batch
        update(self, batch)


def regression_batches(task: int, count: int) -> list[Batch]:
    """Each of 4 examples, with another scale of x in each."""
    g = torch.Generator().manual_seed(task)
    best = torch.tensor([[2.0, -1.0], [-1.0, 3.0], [0.5, 0.5]], dtype=torch.float64)[task]
    batches = []
    for i in range(count):
        x = torch.randn(1, 4, 2, generator=g, dtype=torch.float64) * torch.tensor(
            [0.5 + 0.3 * i, 1.5]
        )
        batches.append(Batch({"x": x}, torch.ones(1, 4, dtype=torch.bool), (x @ best)[..., None]))
    return batches
