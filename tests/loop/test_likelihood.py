"""Likelihoods equal those of torch.distributions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import FixedLearner, FlatNet, random_states, vector_batch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical

from everloop.loop import (
    Batch,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    MultiCategorical,
    SquashedGaussian,
    TokenCategorical,
    UnitGaussian,
    diagonal_fisher,
    likelihood_for,
)

shapes = st.sampled_from([(), (3,), (2, 3)])
sizes = st.integers(1, 4)
seeds = st.integers(0, 10_000)

FAMILIES = pytest.mark.parametrize(
    "likelihood",
    [
        Categorical(3),
        Categorical(3, temperature=2.0),
        Gaussian(2),
        SquashedGaussian([-1.0, 0.0], [1.0, 5.0]),
        TokenCategorical(2, 3),
        MultiCategorical([2, 3]),
        Bernoulli(3),
        UnitGaussian(2),
    ],
    ids=[
        "categorical",
        "boltzmann",
        "gaussian",
        "squashed",
        "tokens",
        "choices",
        "bernoulli",
        "unit",
    ],
)


def draw(seed: int, *shape: int) -> Tensor:
    """Random normal outputs of standard deviation 2, in double precision."""
    return 2 * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def normal(likelihood: Gaussian, p: Tensor) -> Independent:
    """torch's normal distribution with the same mean and deviation."""
    mean, log_std = likelihood.split(p)
    return Independent(Normal(mean, log_std.exp()), 1)


@settings(deadline=None, max_examples=50)
@given(shape=shapes, classes=sizes, seed=seeds)
def test_categorical_equals_torchs(shape: tuple[int, ...], classes: int, seed: int) -> None:
    likelihood = Categorical(classes)
    p = draw(seed, *shape, classes)
    q = draw(seed + 1, *shape, classes)
    theirs, other = TorchCategorical(logits=p), TorchCategorical(logits=q)
    x = torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(likelihood.log_prob(p, x), theirs.log_prob(x))
    torch.testing.assert_close(likelihood.entropy(p), theirs.entropy())
    torch.testing.assert_close(likelihood.kl(p, q), kl_divergence(theirs, other))
    assert torch.equal(likelihood.mode(p), theirs.probs.argmax(-1))
    assert likelihood.sample(p).shape == shape


@settings(deadline=None, max_examples=50)
@given(shape=shapes, length=sizes, classes=sizes, seed=seeds)
def test_each_tagged_token_has_a_categorical_likelihood(
    shape: tuple[int, ...], length: int, classes: int, seed: int
) -> None:
    likelihood = TokenCategorical(length, classes)
    p = draw(seed, *shape, length * classes)
    q = draw(seed + 1, *shape, length * classes)
    theirs, other = (TorchCategorical(logits=z.reshape(*shape, length, classes)) for z in (p, q))
    x = torch.randint(-1, classes, (*shape, length), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        likelihood.log_prob(p, x), (theirs.log_prob(x.clamp(min=0)) * (x >= 0)).sum(-1)
    )
    torch.testing.assert_close(likelihood.entropy(p), theirs.entropy().sum(-1))
    torch.testing.assert_close(likelihood.kl(p, q), kl_divergence(theirs, other).sum(-1))
    assert torch.equal(likelihood.mode(p), theirs.probs.argmax(-1))
    assert likelihood.sample(p).shape == (*shape, length)
    assert likelihood.size() == length * classes


@settings(deadline=None, max_examples=50)
@given(shape=shapes, dims=sizes, seed=seeds)
def test_bernoulli_and_unit_gaussian_equal_torchs(
    shape: tuple[int, ...], dims: int, seed: int
) -> None:
    p, q = draw(seed, *shape, dims), draw(seed + 1, *shape, dims)
    pairs = [
        (Bernoulli(dims), TorchBernoulli(logits=p), TorchBernoulli(logits=q)),
        (UnitGaussian(dims), Normal(p, 1.0), Normal(q, 1.0)),
    ]
    for likelihood, theirs, other in pairs:
        x = theirs.sample()
        torch.testing.assert_close(likelihood.log_prob(p, x), theirs.log_prob(x).sum(-1))
        torch.testing.assert_close(likelihood.entropy(p), theirs.entropy().sum(-1))
        torch.testing.assert_close(likelihood.kl(p, q), kl_divergence(theirs, other).sum(-1))
        assert likelihood.sample(p).shape == likelihood.mode(p).shape == (*shape, dims)


@settings(deadline=None, max_examples=50)
@given(shape=shapes, dims=sizes, seed=seeds)
def test_gaussian_equals_torchs(shape: tuple[int, ...], dims: int, seed: int) -> None:
    likelihood = Gaussian(dims)
    p = draw(seed, *shape, 2 * dims)
    q = draw(seed + 1, *shape, 2 * dims)
    theirs = normal(likelihood, p)
    other = normal(likelihood, q)
    x = draw(seed + 2, *shape, dims)
    torch.testing.assert_close(likelihood.log_prob(p, x), theirs.log_prob(x))
    torch.testing.assert_close(likelihood.entropy(p), theirs.entropy())
    torch.testing.assert_close(likelihood.kl(p, q), kl_divergence(theirs, other))
    assert torch.equal(likelihood.mode(p), p[..., :dims])
    assert likelihood.sample(p).shape == (*shape, dims)


@settings(deadline=None, max_examples=50)
@given(shape=shapes, classes=sizes, temperature=st.floats(0.3, 3.0), seed=seeds)
def test_a_temperature_divides_the_outputs(
    shape: tuple[int, ...], classes: int, temperature: float, seed: int
) -> None:
    likelihood, plain = Categorical(classes, temperature), Categorical(classes)
    p, q = draw(seed, *shape, classes), draw(seed + 1, *shape, classes)
    x = torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(likelihood.log_prob(p, x), plain.log_prob(p / temperature, x))
    assert torch.equal(likelihood.entropy(p), plain.entropy(p / temperature))
    assert torch.equal(likelihood.kl(p, q), plain.kl(p / temperature, q / temperature))
    a, b = (
        family.sample(z, torch.Generator().manual_seed(0))
        for family, z in ((likelihood, p), (plain, p / temperature))
    )
    assert torch.equal(a, b)


def test_the_exact_fisher_information_respects_the_temperature() -> None:
    """It is the limit of the sampled Fisher information."""
    torch.manual_seed(0)
    module = FlatNet(nn.Linear(2, 3), "x").double()
    learner = FixedLearner(module, Categorical(3, temperature=0.5))
    few = vector_batch(4, 2, 3)
    many = few[torch.arange(4).repeat(5000)]
    exact = diagonal_fisher(learner, [few], exact=True).values()
    for f, drawn in zip(
        exact,
        diagonal_fisher(learner, [many], torch.Generator().manual_seed(0)).values(),
        strict=True,
    ):
        torch.testing.assert_close(f, drawn, rtol=0.1, atol=0.01)


LOW, HIGH = np.array([-1.0, 0.0, 2.0]), np.array([1.0, 5.0, 3.0])


@settings(deadline=None, max_examples=50)
@given(shape=shapes, seed=seeds)
def test_squashed_gaussian_equals_torchs(shape: tuple[int, ...], seed: int) -> None:
    likelihood = SquashedGaussian(LOW, HIGH)
    p = draw(seed, *shape, 6) / 2
    q = draw(seed + 1, *shape, 6) / 2
    middle, half = torch.as_tensor((LOW + HIGH) / 2), torch.as_tensor((HIGH - LOW) / 2)
    mean, log_std = p[..., :3], p[..., 3:].clamp(-20, 2)
    squashed = TransformedDistribution(
        Normal(mean, log_std.exp()), [TanhTransform(), AffineTransform(middle, half)]
    )
    x = middle + half * torch.tanh(draw(seed + 2, *shape, 3) / 2)
    torch.testing.assert_close(
        likelihood.log_prob(p, x), squashed.log_prob(x).sum(-1), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        likelihood.kl(p, q), kl_divergence(normal(likelihood, p), normal(likelihood, q))
    )
    torch.testing.assert_close(likelihood.mode(p), middle + half * torch.tanh(mean))
    action = likelihood.sample(p, torch.Generator().manual_seed(seed))
    u = mean + log_std.exp() * torch.randn(
        mean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    torch.testing.assert_close(action, middle + half * torch.tanh(u))


@pytest.mark.parametrize(
    ("mean", "log_std"), [(0.0, -3.0), (0.0, 0.0), (1.5, 0.5), (-4.0, -1.0), (3.0, 2.0)]
)
def test_the_squashed_density_has_integral_1_and_correct_entropy(
    mean: float, log_std: float
) -> None:
    likelihood = SquashedGaussian([0.0], [5.0])
    u = torch.linspace(-18, 18, 400_001, dtype=torch.float64)
    x = 2.5 * (torch.tanh(u) + 1)
    log_density = likelihood.log_prob(
        torch.tensor([mean, log_std], dtype=torch.float64).expand(len(u), 2), x[:, None]
    )
    inside = u.abs() < 6.5  # EPSILON in log_prob matters beyond that
    total = torch.trapezoid(log_density.exp()[inside], x[inside])
    theirs = torch.distributions.Normal(mean, math.exp(log_std))
    exact = (
        theirs.log_prob(u)
        - 2 * (math.log(2) - u.abs() - torch.nn.functional.softplus(-2 * u.abs()))
        - math.log(2.5)
    )
    assert float(total) == pytest.approx(
        float(theirs.cdf(torch.tensor(6.5)) - theirs.cdf(torch.tensor(-6.5))), rel=0.1
    )
    entropy = -torch.trapezoid(theirs.log_prob(u).exp() * exact, u)
    if log_std < 1.5:  # else the Gaussian leaves the grid
        assert float(
            likelihood.entropy(torch.tensor([mean, log_std], dtype=torch.float64))
        ) == pytest.approx(float(entropy), abs=0.02)


def squashed_policy(mean: float, std: float, rows: int) -> tuple[FixedLearner, Batch]:
    """A policy whose output is a bias, the mean and log std, for every observation."""
    layer = nn.Linear(1, 2)
    nn.init.zeros_(layer.weight)
    layer.bias = nn.Parameter(torch.tensor([mean, math.log(std)]))
    learner = FixedLearner(FlatNet(layer, "x"), SquashedGaussian([-1.0], [3.0]))
    learner.observed = lambda batch: batch.action  # type: ignore[method-assign]
    return learner, vector_batch(rows, 1, 1, dtype=torch.float32)


@pytest.mark.parametrize("mean", [0.0, 3.0, 9.0, -12.0, 30.0])
def test_fisher_information_of_a_saturated_policy(mean: float) -> None:
    """That of a Gaussian: 1 / std^2 for the mean and 2 for log std, within 5 standard errors.

    The squares of z and of z^2 - 1 have the variances 2 and 56.
    """
    std, rows = 0.5, 3000
    learner, batch = squashed_policy(mean, std, rows)
    _, found = diagonal_fisher(learner, [batch], torch.Generator().manual_seed(0)).values()
    errors = torch.tensor([2**0.5 / std**2, 56**0.5]) / rows**0.5
    assert bool(((found - torch.tensor([1 / std**2, 2.0])).abs() < 5 * errors).all())


@pytest.mark.parametrize(("mean", "least"), [(0.0, 3.5), (4.0, 3.5), (9.0, 0.0), (-30.0, 0.0)])
def test_the_empirical_fisher_of_a_saturated_policy_is_bounded(mean: float, least: float) -> None:
    """Actions at the ends of the range say nothing about a mean beyond them."""
    learner, batch = squashed_policy(mean, 0.5, 3000)
    p = learner.outputs(batch).detach()
    action = learner.likelihood.sample(p, torch.Generator().manual_seed(0))
    _, found = diagonal_fisher(learner, [replace(batch, action=action)]).values()
    assert least <= float(found[0]) < 4.5


@pytest.mark.parametrize(
    ("low", "high"), [([-math.inf], [1.0]), ([0.0], [math.inf]), ([1.0], [1.0]), ([2.0], [1.0])]
)
def test_action_bounds_must_be_finite_and_in_order(low: list[float], high: list[float]) -> None:
    with pytest.raises(ValueError, match="bounds must be finite, each low below its high"):
        SquashedGaussian(low, high)


@settings(deadline=None, max_examples=50)
@given(seed=seeds, size=sizes)
@pytest.mark.parametrize("kind", [Categorical, Gaussian])
def test_kl_is_0_for_equal_outputs_and_never_negative(
    kind: type[Categorical] | type[Gaussian], size: int, seed: int
) -> None:
    likelihood = kind(size)
    p, q = draw(seed, 5, likelihood.size()), draw(seed + 1, 5, likelihood.size())
    torch.testing.assert_close(likelihood.kl(p, p), torch.zeros(5, dtype=torch.float64))
    assert float(likelihood.kl(p, q).min()) >= -1e-12


def test_the_deviation_of_a_gaussian_is_monotonic_and_bounded() -> None:
    s = torch.linspace(-30, 30, 61, dtype=torch.float64)
    mean, log_std = Gaussian(1).split(torch.stack([s, s], -1))
    assert torch.equal(mean[:, 0], s)
    assert bool((log_std.diff(dim=0) >= 0).all())
    assert float(log_std[0]) == pytest.approx(Gaussian.LOW)
    assert float(log_std[-1]) == pytest.approx(Gaussian.HIGH)


def test_categorical_samples_have_the_right_frequencies() -> None:
    p, n = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64), 20_000
    x = Categorical(3).sample(p.expand(n, 3), torch.Generator().manual_seed(0))
    probability = torch.softmax(p, -1)
    error = (probability * (1 - probability) / n).sqrt()
    assert bool(((torch.bincount(x, minlength=3) / n - probability).abs() < 5 * error).all())


def test_gaussian_samples_have_the_right_moments() -> None:
    p, n = torch.tensor([0.3, -0.6, 1.0, -2.0], dtype=torch.float64), 20_000
    likelihood = Gaussian(2)
    x = likelihood.sample(p.expand(n, 4), torch.Generator().manual_seed(0))
    std = likelihood.split(p)[1].exp()
    assert bool(((x.mean(0) - p[:2]).abs() < 5 * std / n**0.5).all())
    assert bool(((x.var(0) / std**2 - 1).abs() < 5 * (2 / n) ** 0.5).all())
    assert abs(float(torch.corrcoef(x.T)[0, 1])) < 5 / n**0.5


@FAMILIES
def test_sampling_with_a_generator_does_not_use_global_ones(
    likelihood: Likelihood,
) -> None:
    p, states = draw(0, 20, likelihood.size()), random_states()
    a, b, c = (likelihood.sample(p, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert random_states() == states
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    likelihood.sample(p)
    assert random_states() != states


@FAMILIES
def test_log_prob_is_differentiable_in_the_outputs(likelihood: Likelihood) -> None:
    p = draw(0, 4, likelihood.size()).requires_grad_()
    x = likelihood.sample(p.detach(), torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, x), p)


def test_the_action_space_determines_the_likelihood() -> None:
    discrete, box = likelihood_for(spaces.Discrete(4)), likelihood_for(spaces.Box(-1.0, 1.0, (3,)))
    assert isinstance(discrete, Categorical)
    assert discrete.size() == 4
    assert isinstance(box, Gaussian)
    tags = likelihood_for(spaces.MultiDiscrete([3, 3]))
    assert isinstance(tags, TokenCategorical)
    assert (tags.length, tags.classes) == (2, 3)
    assert box.size() == 6
    assert likelihood_for(spaces.Discrete(3, start=1)).size() == 3
    bits = likelihood_for(spaces.MultiBinary(4))
    assert isinstance(bits, TokenCategorical)
    assert (bits.length, bits.classes) == (4, 2)
    choices = likelihood_for(spaces.MultiDiscrete([2, 5]))
    assert isinstance(choices, MultiCategorical)
    assert choices.size() == 7


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (2, 2)),
        spaces.Box(-1.0, 1.0, ()),
        spaces.MultiBinary([2, 2]),
        spaces.MultiDiscrete([[2], [2]]),
    ],
    ids=str,
)
def test_other_action_spaces_are_refused(space: spaces.Space[object]) -> None:
    with pytest.raises(
        ValueError, match="it must be a Discrete, or a flat MultiDiscrete, MultiBinary or Box"
    ) as error:
        likelihood_for(space)
    assert " ".join(str(space).split()) in str(error.value)


@settings(deadline=None, max_examples=30)
@given(shape=shapes, options=st.lists(sizes, min_size=1, max_size=3), seed=seeds)
def test_choices_are_independent_categoricals(
    shape: tuple[int, ...], options: list[int], seed: int
) -> None:
    likelihood = MultiCategorical(options)
    p, q = draw(seed, *shape, sum(options)), draw(seed + 1, *shape, sum(options))
    parts, others = (
        [TorchCategorical(logits=z) for z in torch.split(x, options, -1)] for x in (p, q)
    )
    torch.manual_seed(seed)
    x = likelihood.sample(p)
    assert x.shape == (*shape, len(options))
    expected = torch.stack([c.log_prob(i) for c, i in zip(parts, x.unbind(-1), strict=True)])
    torch.testing.assert_close(likelihood.log_prob(p, x), expected.sum(0))
    torch.testing.assert_close(likelihood.entropy(p), sum(c.entropy() for c in parts))
    pairs = zip(parts, others, strict=True)
    torch.testing.assert_close(likelihood.kl(p, q), sum(kl_divergence(a, b) for a, b in pairs))
    best = torch.stack([c.probs.argmax(-1) for c in parts], -1)
    assert torch.equal(likelihood.mode(p), best)
