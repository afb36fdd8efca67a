"""The diagonal Fisher information equals closed forms and loops, in batches of every size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import FixedLearner, random_states, same, vector_batch, vector_learner, weights
from torch import Tensor, nn

from everloop.agents import Agent
from everloop.loop import Batch, Categorical, diagonal_fisher


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, shape)


def layer_used_twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))


def tied_layers() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    layers[2].weight = layers[0].weight
    return layers


def convolutions(**kwargs: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (2, 6, 5)),
            nn.Conv2d(2, 4, 3, **kwargs),
            nn.Tanh(),
            nn.Conv2d(4, 4, (2, 1), groups=2),
            nn.Flatten(),
            nn.LazyLinear(3),
        )

    return build


NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "two layers": (4, lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))),
    "no bias": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)),
    ),
    "layer norm": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
    ),
    "layer norm over two axes": (
        4,
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2)), nn.Flatten(), nn.Linear(4, 3)
        ),
    ),
    "positions": (
        4,
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)),
            nn.Linear(2, 5),
            nn.LayerNorm(5),
            nn.Flatten(),
            nn.Linear(10, 3),
        ),
    ),
    "one layer used twice": (4, layer_used_twice),
    "two layers with one weight": (4, tied_layers),
    "activation in place": (
        4,
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
    ),
    "convolution": (60, convolutions(padding=1)),
    "convolution with stride": (60, convolutions(padding=1, stride=2)),
    "convolution with dilation": (60, convolutions(padding=2, dilation=2)),
}


def assert_hooks_equal_loop(
    learner: FixedLearner, batch: Batch, tolerance: float, sampled: bool
) -> None:
    fast, slow = (
        diagonal_fisher(
            learner,
            [batch],
            torch.Generator().manual_seed(3) if sampled else None,
            by_hooks=by_hooks,
        ).values()
        for by_hooks in (True, False)
    )
    for a, b in zip(fast, slow, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())
    assert max(float(f.max()) for f in slow) > 0


@pytest.mark.parametrize("sampled", [False, True], ids=["empirical", "sampled"])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_equal_a_loop_over_examples(name: str, length: int, sampled: bool) -> None:
    size, build = NETWORKS[name]
    torch.manual_seed(0)
    layers = build()
    layers(torch.zeros(1, size))  # initialises lazy layers
    assert_hooks_equal_loop(
        vector_learner(layers, 3), vector_batch(35, size, 3, length), 1e-12, sampled
    )


def agent_case(name: str) -> tuple[Agent, Batch]:
    """A single-precision agent, and five examples of T steps; some start an episode within."""
    torch.manual_seed(1)
    parts: dict[str, spaces.Space[object]] = {
        "a": box(3),
        "b": box(2, 2),
        "presence": spaces.Box(0.0, 1.0, (2,)),
    }
    if name == "images":
        parts = {"image": spaces.Box(0, 255, (9, 8, 2), "uint8"), "a": box(3)}
    T, B = (6, 5) if name == "recurrent" else (1, 5)
    obs: dict[str, Tensor] = {n: torch.randn(T, B, *(s.shape or ())) for n, s in parts.items()}
    if name == "images":
        obs["image"] = torch.randint(256, (T, B, 9, 8, 2), dtype=torch.uint8)
    else:
        obs["presence"] = torch.tensor(
            [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
        ).repeat(T, 1, 1)
    start = torch.zeros(T, B, dtype=torch.bool)
    start[0] = True
    if T > 1:
        start[2, 1] = start[4, 1] = start[3, 3] = True
    built = Agent(
        spaces.Dict(parts),
        3,
        value_head=True,
        recurrent=name == "recurrent",
        token_size=8,
        attention_heads=2,
        hidden_size=4,
    )
    return built, Batch(obs, start, torch.randint(3, (T, B)))


@pytest.mark.parametrize("sampled", [False, True], ids=["empirical", "sampled"])
@pytest.mark.parametrize("name", ["vectors", "images", "recurrent"])
def test_hooks_equal_a_loop_over_examples_for_agents(name: str, sampled: bool) -> None:
    built, batch = agent_case(name)
    assert_hooks_equal_loop(FixedLearner(built, Categorical(3)), batch, 3e-6, sampled)


def test_a_value_head_has_no_fisher_information() -> None:
    built, batch = agent_case("recurrent")
    fisher = diagonal_fisher(FixedLearner(built, Categorical(3)), [batch]).values()
    by_name = dict(zip([n for n, _ in built.named_parameters()], fisher, strict=True))
    assert (
        float(by_name["value.linear.weight"].max())
        == float(by_name["value.linear.bias"].max())
        == 0.0
    )
    assert float(by_name["head.linear.weight"].max()) > 0.0


def test_frozen_weights_are_left_out() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    learner, batch = vector_learner(layers, 3), vector_batch(6, 4, 3)
    all_weights = list(diagonal_fisher(learner, [batch]).values())
    layers[2].weight.requires_grad_(False)
    trainable = list(diagonal_fisher(learner, [batch]).values())
    assert len(trainable) == 3
    for a, b in zip(trainable, [all_weights[0], all_weights[1], all_weights[3]], strict=True):
        torch.testing.assert_close(a, b)


def softmax_regression() -> tuple[FixedLearner, Batch, Tensor]:
    """A linear classifier, examples, and the class probabilities of the examples."""
    torch.manual_seed(2)
    learner, batch = vector_learner(nn.Linear(4, 3), 3), vector_batch(50, 4, 3)
    with torch.no_grad():
        return learner, batch, torch.softmax(learner.outputs(batch)[0], -1)


def test_empirical_fisher_of_softmax_regression() -> None:
    """d log p(y|x) / dW = (onehot(y) - p) x^T, squared and averaged."""
    learner, batch, p = softmax_regression()
    assert batch.target is not None
    error, x = F.one_hot(batch.target[0], 3) - p, batch.obs["x"][0]
    weight, bias = diagonal_fisher(learner, [batch]).values()
    torch.testing.assert_close(weight, (error[:, :, None] * x[:, None, :]).square().mean(0))
    torch.testing.assert_close(bias, error.square().mean(0))


def test_sampled_fisher_converges_to_its_expectation() -> None:
    """E_y (onehot(y) - p)_i^2 = p_i (1 - p_i), within five standard errors of 6,000 draws.

    The empirical Fisher lies outside.
    """
    learner, batch, p = softmax_regression()
    few = batch[:4]
    p = p[:4]
    draws = 1500
    x = few.obs["x"][0]
    squares = torch.stack(
        [(F.one_hot(torch.full((4,), y), 3) - p)[:, :, None] * x[:, None, :] for y in range(3)]
    ).square()
    exact = torch.einsum("ny,ynci->ci", p, squares) / 4
    torch.testing.assert_close(exact, torch.einsum("nc,ni->ci", p * (1 - p), x**2) / 4)
    variance = (
        torch.einsum("ny,ynci->nci", p, squares**2) - torch.einsum("ny,ynci->nci", p, squares) ** 2
    )
    error = (variance.mean(0) / (4 * draws)).sqrt()
    many = Batch(
        {"x": few.obs["x"].repeat(1, draws, 1)},
        few.start.repeat(1, draws),
        few.target.repeat(1, draws),
    )  # type: ignore[union-attr]
    sampled = next(
        iter(diagonal_fisher(learner, [many], torch.Generator().manual_seed(0)).values())
    )
    assert bool(((sampled - exact).abs() < 5 * error).all())
    assert bool(
        ((next(iter(diagonal_fisher(learner, [few]).values())) - exact).abs() > 5 * error).any()
    )


class OneSigma(Categorical):
    """A normal distribution of standard deviation 0.5.

    Every draw lies one standard deviation above the mean.
    """

    def log_prob(self, p: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((x - p[..., 0]) / 0.5) ** 2

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return p[..., 0] + 0.5


def test_fisher_of_linear_regression() -> None:
    """y ~ N(w x, s^2): F = E x^2 / s^2."""
    batch = vector_batch(40, 3, 1)
    learner = vector_learner(nn.Linear(3, 1, bias=False), 1)
    learner.likelihood = OneSigma(1)
    (fisher,) = diagonal_fisher(learner, [batch], torch.Generator()).values()
    torch.testing.assert_close(fisher, batch.obs["x"][0].square().mean(0, keepdim=True) / 0.25)


def test_fisher_is_the_mean_of_squared_gradients() -> None:
    """At the optimum of balanced labels the mean gradient is 0, but F is 1/4.

    Each example's gradient is 1/2 or -1/2.
    """
    layers = nn.Linear(1, 2)
    nn.init.zeros_(layers.weight)
    nn.init.zeros_(layers.bias)
    learner, labels = vector_learner(layers, 2), torch.tensor([[0, 1] * 16])
    batch = Batch({"x": torch.ones(1, 32, 1)}, torch.ones(1, 32, dtype=torch.bool), labels)
    mean = torch.autograd.grad(learner.loss(batch), list(learner.module.parameters()))
    assert max(float(g.abs().max()) for g in mean) == 0.0
    for f in diagonal_fisher(learner, [batch]).values():
        torch.testing.assert_close(f, torch.full_like(f, 0.25))


class DrawnByInput(Categorical):
    """Draws a label that depends on the logits only, not on the batching of the examples."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (p.sum(-1) * 1000).long() % self.classes


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["empirical", "sampled"])
@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 40), max_size=8), order=st.permutations(range(64)))
def test_fisher_depends_neither_on_batch_sizes_nor_on_order(
    generator: torch.Generator | None, sizes: list[int], order: list[int]
) -> None:
    learner, batch = vector_learner(nn.Linear(4, 3), 3), vector_batch(64, 4, 3)
    learner.likelihood = DrawnByInput(3)
    whole = diagonal_fisher(learner, [batch], generator).values()
    shuffled = batch[torch.tensor(order)]
    cuts = [min(c, 64) for c in torch.cumsum(torch.tensor([0, *sizes, 64]), 0).tolist()]
    parts = [shuffled[a:b] for a, b in pairwise(cuts) if b > a]
    for a, b in zip(diagonal_fisher(learner, parts, generator).values(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["empirical", "sampled"])
@pytest.mark.parametrize("size", [1, 32, 63])
def test_one_batch_of_64_equals_smaller_batches(
    generator: torch.Generator | None, size: int
) -> None:
    learner, batch = vector_learner(nn.Linear(4, 3), 3), vector_batch(64, 4, 3)
    learner.likelihood = DrawnByInput(3)
    for a, b in zip(
        diagonal_fisher(learner, batch.split(size), generator).values(),
        diagonal_fisher(learner, [batch], generator).values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize(
    "batches", [[], [vector_batch(3, 4, 3)[:0]]], ids=["no batch", "an empty batch"]
)
def test_fisher_of_no_examples_is_refused(batches: list[Batch]) -> None:
    with pytest.raises(
        ValueError, match="there are no examples to average over; give at least one"
    ):
        diagonal_fisher(vector_learner(nn.Linear(4, 3), 3), batches).values()


@pytest.mark.parametrize("by_hooks", [True, False])
def test_fisher_changes_neither_network_nor_global_generators(by_hooks: bool) -> None:
    built, batch = agent_case("recurrent")
    learner = FixedLearner(built, Categorical(3))
    learner.loss(batch).backward()
    before = weights(built)
    grads = [None if p.grad is None else p.grad.clone() for p in built.parameters()]
    states = random_states()
    diagonal_fisher(learner, [batch], torch.Generator().manual_seed(0), by_hooks).values()
    assert random_states() == states
    assert same(weights(built), before)
    for p, g in zip(built.parameters(), grads, strict=True):
        assert (p.grad is None and g is None) or (
            p.grad is not None and g is not None and torch.equal(p.grad, g)
        )
    assert not any(module._forward_hooks for module in built.modules())


def test_the_generator_determines_the_sampled_fisher() -> None:
    learner, batch = vector_learner(nn.Linear(4, 3), 3), vector_batch(20, 4, 3)
    a, b, c = (
        diagonal_fisher(learner, [batch], torch.Generator().manual_seed(seed)).values()
        for seed in (0, 0, 1)
    )
    assert same(a, b)
    assert not same(a, c)
