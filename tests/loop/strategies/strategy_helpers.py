"""Tasks without a world, small networks, and penalties on weights for tests of strategies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from loop_helpers import (
    FixedLearner,
    FlatNet,
    gradients,
    update,
    vector_batch,
)
from torch import Tensor, nn

from everloop.loop import Batch, Categorical, Gaussian, Strategy

Weights = dict[str, Tensor]


class Named(NamedTuple):
    """A task for a learner without a world."""

    id: int = 0
    name: str = "any"


class TaskAgnosticLearner(FixedLearner):
    """Task-agnostic, without a world."""

    task_aware = False


class CyclicLabels(Categorical):
    """Samples the classes in order: an example's label is its index modulo the classes."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.arange(p[..., 0].numel()).reshape(p.shape[:-1]) % self.classes


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Routed(nn.Module):
    """Two layers; examples with a positive number pass through a third one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.routed, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, chosen = torch.relu(self.first(x)), (x > 0).any(-1, keepdim=True)
        if bool(chosen.any()):
            h = torch.where(chosen, torch.relu(self.routed(h)), h)
        logits: Tensor = self.last(h)
        return logits


def one_layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias)


def make_learner(
    layers: nn.Module,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    kind: Any = TaskAgnosticLearner,
) -> Any:
    module = FlatNet(layers, "x").double()
    return kind(module, CyclicLabels(3), optimizer(module.parameters()) if optimizer else None)


def random_like(learner: FixedLearner, low: float, high: float, seed: int) -> dict[str, Tensor]:
    """Uniform numbers in [low, high] in the shapes of the weights."""
    g = torch.Generator().manual_seed(seed)
    return {
        n: low + (high - low) * torch.rand(p.shape, generator=g, dtype=p.dtype)
        for n, p in learner.weights().items()
    }


def move_weights(learner: FixedLearner, seed: int) -> dict[str, Tensor]:
    """Set the weights to random values in [-1, 1] and return them."""
    there = random_like(learner, -1.0, 1.0, seed)
    with torch.no_grad():
        for name, p in learner.weights().items():
            p.copy_(there[name])
    return there


def added_gradient(
    learner: FixedLearner, strategy: Strategy, batch: Batch | None = None, existing: float = 0.5
) -> list[Tensor]:
    """What the strategy adds to an existing gradient."""
    for p in learner.weights().values():
        p.grad = torch.full_like(p, existing)
    strategy.edit_gradients(batch or vector_batch(1, 1, 1), learner)
    return [p.grad - existing for p in learner.weights().values() if p.grad is not None]


def snapshot(learner: FixedLearner) -> Weights:
    return {name: p.detach().clone() for name, p in learner.weights().items()}


def penalty_gradient(
    learner: FixedLearner, strength: float, importance: Weights, anchor: Weights
) -> list[Tensor]:
    """Gradient of strength * sum_i Omega_i (w_i - w*_i)^2, by autograd."""
    w = learner.weights()
    penalty = strength * sum((importance[n] * (w[n] - anchor[n]) ** 2).sum() for n in w)
    return list(torch.autograd.grad(penalty, list(w.values())))  # type: ignore[arg-type]


def image_layers(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3, 3)),
        nn.Conv2d(2, 4, 2),
        norm,
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def with_random_statistics(norm: Any) -> nn.Module:
    """A batch norm with random statistics and weights."""
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
    "group norm of images": (18, lambda: image_layers(nn.GroupNorm(2, 4))),
    "batch norm": (
        4,
        lambda: nn.Sequential(
            nn.Linear(4, 5), with_random_statistics(nn.BatchNorm1d(5)), nn.Tanh(), nn.Linear(5, 3)
        ),
    ),
    "batch norm of images": (18, lambda: image_layers(with_random_statistics(nn.BatchNorm2d(4)))),
    "a layer without a rule": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3)),
    ),
}


def classifier(net: str) -> tuple[FixedLearner, int]:
    """A classifier and the size of its inputs."""
    size, build = NETS[net]
    torch.manual_seed(0)
    return TaskAgnosticLearner(FlatNet(build(), "x").double().eval(), Categorical(3)), size


def by_single_examples(
    learner: FixedLearner, batch: Batch, score: Callable[[Batch], Tensor], power: int
) -> list[Tensor]:
    """Mean over single examples of the sum over scores of |gradient|^power."""
    parameters = list(learner.weights().values())
    totals = [torch.zeros_like(p) for p in parameters]
    for example in batch.split(1):
        for value in score(example)[:, 0]:
            for total, g in zip(
                totals, torch.autograd.grad(value, parameters, retain_graph=True), strict=True
            ):
                total += g.abs() ** power / len(batch)
    return totals


def gaussian_kl(p: Any, q: Any) -> Tensor:
    """Mean over examples of KL(N(m, s) || N(m', s')), summed over two actions.

    KL = log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2, with (m, s) from `p` and (m', s') from
    `q`.
    """
    m, log_s = Gaussian(2).split(p)
    m_q, log_s_q = Gaussian(2).split(q)
    s, s_q = log_s.exp(), log_s_q.exp()
    return ((s_q / s).log() + (s**2 + (m - m_q) ** 2) / (2 * s_q**2) - 0.5).sum(-1).mean()


def after_gradient_step(module: nn.Module, loss: Tensor, rate: float) -> list[Tensor]:
    """Weights after one step of plain gradient descent on `loss`."""
    slopes = gradients(loss, module)
    return [p.detach() - rate * g for p, g in zip(module.parameters(), slopes, strict=True)]


class OffsetGaussian(Gaussian):
    """N(p, 1) whose every sample is p + 1, so that d log p(y) / dw = dp / dw."""

    def __init__(self) -> None:
        super().__init__(1)

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return (-0.5 * (x - p) ** 2).sum(-1)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return p + 1


class Regression(FixedLearner):
    """Linear regression with two weights; the loss is the mean of (y - w x)^2 / 2."""

    def __init__(self) -> None:
        super().__init__(FlatNet(nn.Linear(2, 1, bias=False), "x").double(), OffsetGaussian(), None)
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
    """Batches of 4 examples; the scale of x differs between batches."""
    g = torch.Generator().manual_seed(task)
    best = torch.tensor([[2.0, -1.0], [-1.0, 3.0], [0.5, 0.5]], dtype=torch.float64)[task]
    batches = []
    for i in range(count):
        x = torch.randn(1, 4, 2, generator=g, dtype=torch.float64) * torch.tensor(
            [0.5 + 0.3 * i, 1.5]
        )
        batches.append(Batch({"x": x}, torch.ones(1, 4, dtype=torch.bool), (x @ best)[..., None]))
    return batches
