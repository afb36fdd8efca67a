"""Per-example gradients and the exact Fisher information, against loops over examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    distance,
    mlp,
    same,
    stream,
    vector_batch,
    vector_learner,
)
from strategy_helpers import (
    NETS,
    Named,
    by_single_examples,
    classifier,
)
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.prune import random_unstructured

from everloop.loop import (
    EWC,
    Batch,
    Categorical,
    Gaussian,
    SupervisedLearner,
    Training,
    diagonal_fisher,
)
from everloop.loop.importance.fisher import every_class
from everloop.loop.importance.per_example import mean_powers
from everloop.loop.strategies.parts.unit_masks import hidden_layers, unit_masks

# per-example gradients


def two_scores(learner: FixedLearner) -> Callable[[Batch], Tensor]:
    """Two scores of an example: the squares and the logsumexp of its outputs, summed over steps."""

    def score(batch: Batch) -> Tensor:
        outputs = learner.outputs(batch)
        return torch.stack([(outputs**2).sum((0, 2)), outputs.logsumexp(-1).sum(0)])

    return score


@pytest.mark.parametrize("by_hooks", [True, False])
@pytest.mark.parametrize("net", NETS)
@settings(deadline=None, max_examples=6)
@given(
    examples=st.integers(1, 9),
    length=st.integers(1, 3),
    power=st.integers(1, 3),
    cut=st.integers(1, 9),
)
def test_mean_powers_equal_a_loop_over_examples_and_scores(
    net: str, by_hooks: bool, examples: int, length: int, power: int, cut: int
) -> None:
    learner, size = classifier(net)
    batch, score = vector_batch(examples, size, 3, length, seed=examples), two_scores(learner)
    expected = by_single_examples(learner, batch, score, power)
    for a, b in zip(
        mean_powers(learner, batch.split(cut), score, power, by_hooks).values(),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_powers_are_taken_per_example_and_score() -> None:
    """Two examples have opposite gradients, and two scores have opposite signs.

    Each absolute value is 3; the gradients themselves add up to 0.
    """
    learner = vector_learner(nn.Linear(1, 1, bias=False), 2)
    batch = Batch({"x": torch.tensor([[[3.0], [-3.0]]])}, torch.ones(1, 2, dtype=torch.bool))

    def score(batch: Batch) -> Tensor:
        outputs = learner.outputs(batch)[0, :, 0]
        return torch.stack([outputs, -outputs])

    (absolute,) = mean_powers(learner, [batch], score, 1).values()
    assert absolute.tolist() == [[6.0]]
    (squared,) = mean_powers(learner, [batch], score, 2).values()
    assert squared.tolist() == [[18.0]]


@pytest.mark.parametrize("power", [1, 2])
def test_a_layer_call_without_effect_on_the_scores_adds_nothing(power: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    learner, batch = vector_learner(layer, 3), vector_batch(5, 4, 3)

    def score(batch: Batch) -> Tensor:
        x = batch.obs["x"][0]
        layer(x.square())
        return layer(x).square().sum(1)[None]

    fast, slow = (
        mean_powers(learner, [batch], score, power, by_hooks) for by_hooks in (True, False)
    )
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value)


@pytest.mark.parametrize("exact", [False, True])
def test_mixed_precision_gives_fisher_information_in_float32(exact: bool) -> None:
    learner = SupervisedLearner(
        mlp().float(), stream(), Training(precision="bfloat16", device="cpu")
    )
    batches = [learner.rollout(stream(), [0], 16, seed) for seed in range(3)]
    fisher = diagonal_fisher(
        learner, batches, None if exact else torch.Generator().manual_seed(0), exact=exact
    )
    assert {value.dtype for value in fisher.values()} == {torch.float32}


def test_batch_norm_does_not_mix_per_example_gradients() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    learner, batch = vector_learner(layers, 3), vector_batch(40, 4, 3)
    learner.loss(batch)  # updates the running statistics
    before = [b.clone() for b in learner.module.buffers()]
    whole = diagonal_fisher(learner, [batch]).values()
    parts = diagonal_fisher(learner, batch.split(7)).values()
    looped = diagonal_fisher(learner, [batch], by_hooks=False).values()
    assert same(list(learner.module.buffers()), before)
    assert learner.module.training
    assert distance(whole, parts) < 1e-12
    assert distance(whole, looped) < 1e-12


class Standardised(nn.Linear):
    """A layer that standardises the weights of each unit to mean 0 and deviation 1."""

    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean(1, keepdim=True)) / self.weight.std(
            1, keepdim=True
        )
        return nn.functional.linear(input, weight, self.bias)


class StandardisedConvolution(nn.Conv2d):
    """A layer that centres its weights in `_conv_forward`, which torch's forward pass calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Gain(nn.Linear):
    """A layer with an extra weight, which multiplies the outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.tensor([2.0]))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


class Renamed(nn.Linear):
    """A subclass that changes nothing."""


def hooked(layer: nn.Module, in_place: bool = False) -> nn.Module:
    layer.register_forward_hook(
        lambda layer, inputs, output: output.mul_(3.0) if in_place else output * 3.0
    )
    return layer


def replaced(layer: nn.Module) -> nn.Module:
    """`layer` with its forward method replaced, as some libraries patch it."""
    own = layer.forward
    layer.forward = lambda x: own(x) * 3.0  # type: ignore[method-assign]
    return layer


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: weight_norm(nn.Linear(4, 5)),
    "spectral norm": lambda: spectral_norm(nn.Linear(4, 5)),
    "pruned": lambda: random_unstructured(nn.Linear(4, 5), "weight", 0.3),
    "standardised weights": lambda: Standardised(4, 5),
    "standardised convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), StandardisedConvolution(1, 5, 2), nn.Flatten()
    ),
    "extra weight": lambda: Gain(4, 5),
    "subclass": lambda: Renamed(4, 5),
    "a hook": lambda: hooked(nn.Linear(4, 5)),
    "a hook in place": lambda: hooked(nn.Linear(4, 5), in_place=True),
    "replaced forward": lambda: replaced(nn.Linear(4, 5)),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("layer", UNUSUAL)
def test_unusual_layers_have_the_gradients_of_single_examples(layer: str, power: int) -> None:
    torch.manual_seed(0)
    learner = vector_learner(nn.Sequential(UNUSUAL[layer](), nn.Tanh(), nn.Linear(5, 3)), 3)
    learner.module.eval()
    batch, score = vector_batch(9, 4, 3), two_scores(learner)
    expected = by_single_examples(learner, batch, score, power)
    for a, b in zip(mean_powers(learner, [batch], score, power).values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(5, eps=0.5),
    "group norm": lambda: nn.GroupNorm(1, 5, eps=0.5),
    "batch norm": lambda: nn.BatchNorm1d(5, eps=0.5),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_norms_own_epsilon_counts(norm: str) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), NORMS[norm](), nn.Tanh(), nn.Linear(5, 3))
    learner, batch = vector_learner(layers, 3), vector_batch(9, 4, 3)
    learner.module.eval()
    score = two_scores(learner)
    expected = by_single_examples(learner, batch, score, 2)
    for a, b in zip(mean_powers(learner, [batch], score, 2).values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_masked_units_scale_the_fisher_information_by_the_squared_mask() -> None:
    """HAT's mask a multiplies the gradient, so a^2 multiplies the Fisher information."""
    learner, batch = classifier("mlp")[0], vector_batch(9, 4, 3)
    masks = unit_masks(hidden_layers(learner))
    assert len(masks) == 1
    with torch.no_grad():
        next(iter(masks.values())).copy_(torch.tensor([1.0, 0.5, 0.25, 0.0, 1.0]))
    expected = by_single_examples(
        learner, batch, lambda batch: learner.log_likelihood(batch)[None], 2
    )
    assert distance(list(diagonal_fisher(learner, [batch]).values()), expected) < 1e-12


# the exact Fisher information


def test_exact_fisher_of_logistic_regression() -> None:
    """F of the weight w_ci is the mean of p_c (1 - p_c) x_i^2, with p (1 - p) for both classes."""
    torch.manual_seed(0)
    learner, batch = vector_learner(nn.Linear(4, 2), 2), vector_batch(50, 4, 2)
    x = batch.obs["x"][0]
    p = torch.sigmoid(torch.diff(learner.outputs(batch)[0].detach(), dim=-1)[:, 0])
    weight, bias = diagonal_fisher(learner, [batch], exact=True).values()
    variance = (p * (1 - p))[:, None]
    torch.testing.assert_close(weight, (variance * x**2).mean(0).expand(2, 4), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(bias, variance.mean().expand(2), rtol=1e-12, atol=0.0)


def by_classes(learner: FixedLearner, batch: Batch) -> list[Tensor]:
    """Mean over examples of sum_c p_c (d log p_c / d w)^2, by one backward pass for each."""
    parameters = list(learner.weights().values())
    totals = [torch.zeros_like(p) for p in parameters]
    for example in batch.split(1):
        p = torch.softmax(learner.outputs(example)[0, 0], -1)
        for p_c in p:
            for total, g in zip(
                totals, torch.autograd.grad(p_c.log(), parameters, retain_graph=True), strict=True
            ):
                total += p_c.detach() * g**2 / len(batch)
    return totals


@pytest.mark.parametrize("by_hooks", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_exact_fisher_equals_a_loop_over_classes(net: str, by_hooks: bool) -> None:
    learner, size = classifier(net)
    batch = vector_batch(37, size, 3)
    for a, b in zip(
        diagonal_fisher(learner, [batch], by_hooks=by_hooks, exact=True).values(),
        by_classes(learner, batch),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


@settings(deadline=None, max_examples=10)
@given(cut=st.integers(1, 70), order=st.permutations(range(70)))
def test_exact_fisher_depends_on_neither_batching_nor_order_nor_labels(
    cut: int, order: list[int]
) -> None:
    learner, _ = classifier("mlp")
    batch = vector_batch(70, 4, 3)
    shuffled = Batch({"x": batch.obs["x"][:, order]}, batch.start)
    whole = diagonal_fisher(learner, [batch], exact=True).values()
    for a, b in zip(
        diagonal_fisher(learner, shuffled.split(cut), exact=True).values(), whole, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0.0)


def test_exact_fisher_is_0_if_the_model_is_certain() -> None:
    learner = vector_learner(nn.Linear(4, 3), 3)
    with torch.no_grad():
        learner.module.layers.bias.copy_(torch.tensor([2000.0, 0.0, -2000.0]))
    for f in diagonal_fisher(learner, [vector_batch(5, 4, 3)], exact=True).values():
        assert torch.equal(f, torch.zeros_like(f))


def test_the_score_of_a_class_is_sqrt_p_log_p() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(5, 4, 3)
    p = torch.softmax(learner.outputs(batch)[0], -1)
    torch.testing.assert_close(every_class(learner)(batch), (p.sqrt() * p.log()).T)


def test_exact_ewc_draws_no_random_numbers() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(20, 4, 3)
    expected = by_classes(learner, batch)
    for seed in (0, 1):
        strategy = EWC(fisher="exact", seed=seed)
        before = strategy.generator.get_state()
        strategy.end_task(Named(), [batch], learner)
        assert distance(list(strategy.penalty.precision.values()), expected) < 1e-12
        assert torch.equal(strategy.generator.get_state(), before)


@pytest.mark.parametrize(
    ("likelihood", "steps"),
    [(Gaussian(2), 1), (Categorical(4), 2)],
    ids=["no classes", "sequences"],
)
def test_exact_fisher_needs_classes_and_single_steps(likelihood: Any, steps: int) -> None:
    learner = FixedLearner(FlatNet(nn.Linear(4, 4), "x").double(), likelihood)
    learner.sequence_length = steps
    with pytest.raises(
        ValueError, match=r"fisher is 'exact', which needs .*use sampled or empirical"
    ):
        learner.attach([EWC(fisher="exact")])
    learner.attach([EWC(fisher="sampled"), EWC(fisher="empirical")])
    learner.likelihood, learner.sequence_length = Categorical(4), 1
    learner.attach([EWC(fisher="exact")])
    assert len(learner.strategies) == 1
