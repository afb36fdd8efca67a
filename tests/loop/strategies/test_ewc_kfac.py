"""Kronecker-factored EWC: its penalty, its factors and the weights outside linear layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from loop_helpers import FixedLearner, distance, gradients, vector_batch, weights
from strategy_helpers import (
    Named,
    added_gradient,
    make_learner,
    move_weights,
    one_layer,
    two_layers,
)
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from everloop.loop import EWC, Batch, Categorical, KroneckerEWC, diagonal_fisher
from everloop.loop.batch import subsample


def factors(learner: FixedLearner, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A, G and the weights of both layers of `two_layers`; the bias is the last column."""
    first, second = learner.module.layers[0], learner.module.layers[2]
    with torch.no_grad():
        x = batch.obs["x"][0]
        h = torch.tanh(first(x))
        label = torch.arange(len(x)) % 3
        g2 = F.one_hot(label, 3) - torch.softmax(second(h), -1)
        g1 = (g2 @ second.weight) * (1 - h**2)
        one = torch.ones(len(x), 1, dtype=x.dtype)
        a1, a2 = torch.cat([x, one], 1), torch.cat([h, one], 1)
        return [
            (a.T @ a / len(x), g.T @ g / len(x), stacked(layer).clone())
            for a, g, layer in ((a1, g1, first), (a2, g2, second))
        ]


def stacked(layer: nn.Linear) -> Tensor:
    """(o, i + 1), the bias as the last column."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1)


def vec(matrix: Tensor) -> Tensor:
    """Stack the columns."""
    return matrix.T.reshape(-1)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_the_kronecker_gradient_is_that_of_the_full_quadratic_form(tasks: int) -> None:
    """strength / 2 sum_k vec(W - W_k)' (A_k x G_k) vec(W - W_k) with full Kronecker products."""
    learner, strategy = make_learner(two_layers()), KroneckerEWC(3.0, examples=19)
    learner.attach([strategy])
    ended = []
    for task in range(tasks):
        move_weights(learner, task)
        batch = vector_batch(24, 4, 3, seed=task)
        strategy.end_task(Named(task), [batch], learner)
        ended.append(factors(learner, subsample([batch], 19)[0]))
    move_weights(learner, 9)
    loss = torch.zeros((), dtype=torch.float64)
    for then in ended:
        for layer, (A, G, W) in zip(
            (learner.module.layers[0], learner.module.layers[2]), then, strict=True
        ):
            d = vec(stacked(layer) - W)
            loss = loss + 0.5 * 3.0 * d @ torch.kron(A, G) @ d
    expected = gradients(loss, learner.module)
    assert distance(added_gradient(learner, strategy), expected) < 1e-10
    assert min(float(g.abs().max()) for g in expected) > 1e-2


def test_kronecker_factors_do_not_depend_on_the_batches() -> None:
    """Twelve examples at once, or three and nine; the sampled labels are the same in both."""
    learner, batch = make_learner(two_layers()), vector_batch(12, 4, 3)
    added = []
    for batches in ([batch], [batch[:3], batch[3:]]):
        move_weights(learner, 0)
        strategy = KroneckerEWC(1.0)
        strategy.end_task(Named(), batches, learner)
        move_weights(learner, 1)
        added.append(added_gradient(learner, strategy))
    assert distance(*added) < 1e-13


def full_fisher(learner: FixedLearner, batch: Batch, parameters: list[nn.Parameter]) -> Tensor:
    """Mean over examples of u u', with u the gradient of log p in the flattened `parameters`."""
    log_p = learner.log_likelihood(batch, torch.Generator())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in log_p
    ]
    u = torch.stack(rows)
    return u.T @ u / len(u)


def assert_penalty_of_the_full_fisher(
    learner: FixedLearner, batch: Batch, layers: list[nn.Linear]
) -> None:
    """Each layer's penalty has the gradient strength F (w - w*), with F the layer's full Fisher."""
    fishers = [full_fisher(learner, batch, list(layer.parameters())) for layer in layers]
    off_diagonal = [f - torch.diag(torch.diag(f)) for f in fishers]
    assert all(float(f.abs().max()) > 1e-3 for f in off_diagonal)
    strategy = KroneckerEWC(2.0)
    learner.attach([strategy])
    strategy.end_task(Named(), [batch], learner)
    then = [torch.cat([p.detach().flatten() for p in layer.parameters()]) for layer in layers]
    move_weights(learner, 5)
    added_gradient(learner, strategy, existing=0.0)
    for layer, fisher, w in zip(layers, fishers, then, strict=True):
        now = torch.cat([p.detach().flatten() for p in layer.parameters()])
        added = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        torch.testing.assert_close(added, 2.0 * fisher @ (now - w), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_factors_are_the_full_fisher_if_examples_share_their_input(
    bias: bool,
) -> None:
    """mean of (a x g)(a x g)' = a a' x mean of g g'."""
    learner = make_learner(one_layer(bias))
    x = vector_batch(1, 4, 3).obs["x"].repeat(1, 7, 1)
    assert_penalty_of_the_full_fisher(
        learner, Batch({"x": x}, torch.ones(1, 7, dtype=torch.bool)), [learner.module.layers]
    )


def test_for_one_example_factors_are_the_full_fisher_of_every_layer() -> None:
    learner = make_learner(two_layers())
    assert_penalty_of_the_full_fisher(
        learner, vector_batch(1, 4, 3), [learner.module.layers[0], learner.module.layers[2]]
    )


def test_kronecker_ewc_leaves_changes_free_that_preserve_the_outputs() -> None:
    """A change of weights that preserves all outputs costs nothing; diagonal EWC penalises it."""
    learner = make_learner(one_layer())
    strategy = KroneckerEWC(1.0)
    diagonal = EWC(1.0)
    batch = vector_batch(9, 4, 3)
    batch.obs["x"][..., 1] = batch.obs["x"][..., 0]
    outputs = learner.outputs(batch).detach()
    for one in (strategy, diagonal):
        one.end_task(Named(), [batch], learner)
    with torch.no_grad():
        learner.module.layers.weight[:, 0] += 2.0
        learner.module.layers.weight[:, 1] -= 2.0
    torch.testing.assert_close(learner.outputs(batch).detach(), outputs)
    assert max(float(g.abs().max()) for g in added_gradient(learner, strategy)) < 1e-12
    assert max(float(g.abs().max()) for g in added_gradient(learner, diagonal)) > 0.1


def tied() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    layers[2].weight = layers[0].weight
    return layers


def twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("build", "outside"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
            {"layers.1.weight", "layers.1.bias"},
        ),
        (twice, {"layers.0.weight", "layers.0.bias"}),
        (tied, {"layers.0.weight", "layers.0.bias", "layers.2.bias"}),
        (
            lambda: nn.Sequential(
                nn.Unflatten(1, (2, 2)),
                nn.Linear(2, 5),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(10, 3, bias=False),
            ),
            {"layers.1.weight", "layers.1.bias"},
        ),
        (
            lambda: nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
            {
                "layers.0.bias",
                "layers.0.parametrizations.weight.original0",
                "layers.0.parametrizations.weight.original1",
            },
        ),
    ],
    ids=[
        "layer norm",
        "a layer used twice",
        "two layers sharing a weight",
        "a layer applied at many positions",
        "parametrized weights",
    ],
)
def test_weights_outside_plain_linear_layers_get_the_diagonal_penalty(
    build: Callable[[], nn.Module], outside: set[str]
) -> None:
    torch.manual_seed(0)
    learner = make_learner(build())
    strategy = KroneckerEWC(2.0)
    batch = vector_batch(11, 4, 3)
    fisher = dict(
        zip(
            learner.weights(),
            diagonal_fisher(learner, [batch], torch.Generator(), by_hooks=False).values(),
            strict=True,
        )
    )
    then = {n: p.detach().clone() for n, p in learner.weights().items()}
    strategy.end_task(Named(), [batch], learner)
    assert set(strategy.rest.precision) == outside
    move_weights(learner, 5)
    added = dict(zip(learner.weights(), added_gradient(learner, strategy), strict=True))
    for name, p in learner.weights().items():
        diagonal = 2.0 * fisher[name] * (p.detach() - then[name])
        assert (float((added[name] - diagonal).abs().max()) < 1e-12) is (name in outside)


def test_a_wrapped_layer_gets_no_kronecker_penalty() -> None:
    """Adapters wrap layers so. The other layers are penalised as before."""
    learner, strategy = make_learner(two_layers()), KroneckerEWC(1.0)
    learner.attach([strategy])
    strategy.end_task(Named(), [vector_batch(9, 4, 3)], learner)
    move_weights(learner, 1)
    alone = added_gradient(learner, strategy)
    learner.module.layers[0] = nn.Sequential(learner.module.layers[0])
    added = added_gradient(learner, strategy)
    assert not any(bool(g.any()) for g in added[:2])
    assert distance(added[2:], alone[2:]) == 0.0
    assert bool(alone[2].any())


def test_without_linear_layers_kronecker_ewc_is_diagonal_ewc() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten())
    learner = make_learner(layers)
    strategy = KroneckerEWC(2.0)
    batch = vector_batch(11, 4, 3)
    fisher = diagonal_fisher(learner, [batch], torch.Generator(), by_hooks=False).values()
    then = weights(learner.module)
    strategy.end_task(Named(), [batch], learner)
    move_weights(learner, 5)
    expected = [
        2.0 * f * (w - c) for f, w, c in zip(fisher, weights(learner.module), then, strict=True)
    ]
    assert distance(added_gradient(learner, strategy), expected) < 1e-12


class EveryPair(Categorical):
    """Samples each pair of three labels once, over two steps and nine examples."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([torch.arange(9) // 3, torch.arange(9) % 3])


def test_fisher_information_is_of_examples_not_of_steps() -> None:
    """Independent steps add up; the factors' diagonal is the diagonal Fisher information."""
    layers = nn.Linear(2, 3)
    nn.init.zeros_(layers.weight)
    nn.init.zeros_(layers.bias)
    learner = make_learner(layers)
    learner.likelihood = EveryPair(3)
    x = vector_batch(1, 2, 3).obs["x"].repeat(2, 9, 1)
    batch = Batch({"x": x}, torch.tensor([[True], [False]]).repeat(1, 9))
    weight, bias = diagonal_fisher(learner, [batch], torch.Generator()).values()
    torch.testing.assert_close(weight, 2 * 2 / 9 * x[0, :1].square().expand(3, 2))
    strategy = KroneckerEWC(1.0)
    strategy.end_task(Named(), [batch], learner)
    A, G, _ = strategy.layers["layers"][0]
    torch.testing.assert_close(
        torch.outer(G.diag(), A.diag()), torch.cat([weight, bias[:, None]], 1)
    )


def test_kronecker_labels_are_drawn_from_the_model() -> None:
    """With inputs of 0, G tends to diag(p) - p p': within five standard errors of 3000 draws."""
    layers, count = nn.Linear(1, 3), 3000
    learner = make_learner(layers)
    learner.likelihood = Categorical(3)
    with torch.no_grad():
        layers.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    batch = Batch(
        {"x": torch.zeros(1, count, 1)},
        torch.ones(1, count, dtype=torch.bool),
        torch.zeros(1, count, dtype=torch.long),
    )
    strategies = [KroneckerEWC(1.0, examples=count, seed=seed) for seed in (0, 0, 1)]
    for strategy in strategies:
        strategy.end_task(Named(), [batch], learner)
    A, G, _ = strategies[0].layers["layers"][0]
    same, other = (strategy.layers["layers"][0][1] for strategy in strategies[1:])
    p = torch.softmax(layers.bias.detach(), -1)
    g = torch.eye(3) - p  # one row per label
    products = g[:, :, None] * g[:, None, :]
    mean = torch.einsum("y,yab->ab", p, products)
    error = ((torch.einsum("y,yab->ab", p, products**2) - mean**2) / count).sqrt()
    torch.testing.assert_close(mean, torch.diag(p) - torch.outer(p, p))
    assert bool(((G - mean).abs() < 5 * error).all())
    assert torch.equal(A, torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    assert torch.equal(G, same)
    assert not torch.equal(G, other)
