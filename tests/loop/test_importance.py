"""How important each weight was: by closed forms, by loops over examples and classes, by finite differences, by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    distance,
    keyword_grid,
    mlp,
    same,
    stream,
    vector_batch,
    vector_learner,
)
from torch import Tensor, nn

from everloop.loop import STRATEGIES, Batch, Categorical, Gaussian, Strategy, SupervisedLearner, diagonal_fisher
from everloop.loop.fisher import every_class
from everloop.loop.per_example import mean_powers
from everloop.loop.strategies import EWC, MAS, SI, Replay, RWalk
from everloop.loop.strategies.path import PathIntegral

Weights = dict[str, Tensor]


class Named(NamedTuple):
    """Any task at all."""

    id: int = 0
    name: str = "any"


class Untold(FixedLearner):
    """Has no world that could tell the task."""

    told = False


def snapshot(learner: FixedLearner) -> Weights:
    return {name: p.detach().clone() for name, p in learner.weights().items()}


def move(learner: FixedLearner, seed: int) -> Weights:
    """Put the weights elsewhere, and return where they are now."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in learner.weights().values():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return snapshot(learner)


def edited(learner: FixedLearner, strategy: Strategy, already: float = 0.5) -> list[Tensor]:
    """What the strategy adds to a gradient that is there already."""
    for p in learner.weights().values():
        p.grad = torch.full_like(p, already)
    strategy.edit_gradients(learner, None)
    return [p.grad - already for p in learner.weights().values() if p.grad is not None]


def pull(learner: FixedLearner, strength: float, importance: Weights, center: Weights) -> list[Tensor]:
    """By autograd: the gradient of strength * sum_i Omega_i (w_i - w*_i)^2."""
    w = learner.weights()
    penalty = strength * sum((importance[n] * (w[n] - center[n]) ** 2).sum() for n in w)
    return list(torch.autograd.grad(penalty, list(w.values())))  # type: ignore[arg-type]


# gradients of every example by itself

NETS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "mlp": (4, lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))),
    "convolution": (18, lambda: nn.Sequential(nn.Unflatten(1, (2, 3, 3)), nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))),
    "layer norm": (4, lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))),
    "positions": (6, lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))),
    "a layer used twice": (4, lambda: nn.Sequential(shared := nn.Linear(4, 4), nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))),
    "group norm, which has no rule": (4, lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 3))),
}


def classifier(net: str) -> tuple[FixedLearner, int]:
    """A learner, and the size of its inputs."""
    size, build = NETS[net]
    torch.manual_seed(0)
    return Untold(FlatNet(build(), "x").double(), Categorical(3)), size


def two_scores(learner: FixedLearner) -> Callable[[Batch], Tensor]:
    """Of each example: the outputs' squares and their largest, both summed over steps."""

    def score(batch: Batch) -> Tensor:
        outputs = learner.outputs(batch)
        return torch.stack([(outputs**2).sum((0, 2)), outputs.logsumexp(-1).sum(0)])

    return score


def by_single_examples(learner: FixedLearner, batch: Batch, score: Callable[[Batch], Tensor], power: int) -> list[Tensor]:
    """The mean over examples, each a batch of its own, of the sum over scores of |gradient|^power."""
    parameters = list(learner.weights().values())
    totals = [torch.zeros_like(p) for p in parameters]
    for example in batch.split(1):
        for value in score(example)[:, 0]:
            for total, g in zip(totals, torch.autograd.grad(value, parameters, retain_graph=True), strict=True):
                total += g.abs() ** power / len(batch)
    return totals


@pytest.mark.parametrize("by_hooks", [True, False])
@pytest.mark.parametrize("net", NETS)
@settings(deadline=None, max_examples=6)
@given(examples=st.integers(1, 9), length=st.integers(1, 3), power=st.integers(1, 3), cut=st.integers(1, 9))
def test_means_of_powers_are_those_of_every_example_and_score_by_itself(
    net: str, by_hooks: bool, examples: int, length: int, power: int, cut: int
) -> None:
    learner, size = classifier(net)
    batch, score = vector_batch(examples, size, 3, length, seed=examples), two_scores(learner)
    expected = by_single_examples(learner, batch, score, power)
    for a, b in zip(mean_powers(learner, batch.split(cut), score, power, by_hooks).values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_absolute_values_are_taken_before_the_mean_and_before_the_sum_over_scores() -> None:
    """Two examples of opposite gradients, two scores of opposite signs: each is 3 by itself, all together are 0."""
    learner = vector_learner(nn.Linear(1, 1, bias=False), 2)
    batch = Batch({"x": torch.tensor([[[3.0], [-3.0]]])}, torch.ones(1, 2, dtype=torch.bool))

    def score(batch: Batch) -> Tensor:
        outputs = learner.outputs(batch)[0, :, 0]
        return torch.stack([outputs, -outputs])

    (absolute,) = mean_powers(learner, [batch], score, 1).values()
    assert absolute.tolist() == [[6.0]]
    (squared,) = mean_powers(learner, [batch], score, 2).values()
    assert squared.tolist() == [[18.0]]


def test_batch_norm_does_not_mix_the_examples_whose_gradients_are_taken() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    learner, batch = vector_learner(layers, 3), vector_batch(40, 4, 3)
    learner.loss(batch)  # statistics of some batch
    before = [b.clone() for b in learner.module.buffers()]
    whole = diagonal_fisher(learner, [batch]).values()
    parts = diagonal_fisher(learner, batch.split(7)).values()
    looped = diagonal_fisher(learner, [batch], by_hooks=False).values()
    assert same(list(learner.module.buffers()), before)
    assert learner.module.training
    assert distance(whole, parts) < 1e-12
    assert distance(whole, looped) < 1e-12


# the exact Fisher information


def test_exact_fisher_of_logistic_regression() -> None:
    """F of a weight w_ci = mean of p_c (1 - p_c) x_i^2; of two classes both have p (1 - p)."""
    torch.manual_seed(0)
    learner, batch = vector_learner(nn.Linear(4, 2), 2), vector_batch(50, 4, 2)
    x, p = batch.obs["x"][0], torch.sigmoid(torch.diff(learner.outputs(batch)[0].detach(), dim=-1)[:, 0])
    weight, bias = diagonal_fisher(learner, [batch], exact=True).values()
    variance = (p * (1 - p))[:, None]
    torch.testing.assert_close(weight, (variance * x**2).mean(0).expand(2, 4), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(bias, variance.mean().expand(2), rtol=1e-12, atol=0.0)


def by_classes(learner: FixedLearner, batch: Batch) -> list[Tensor]:
    """Mean over examples of sum_c p_c (d log p_c / d w)^2, one backward pass for each example and class."""
    parameters = list(learner.weights().values())
    totals = [torch.zeros_like(p) for p in parameters]
    for example in batch.split(1):
        p = torch.softmax(learner.outputs(example)[0, 0], -1)
        for p_c in p:
            for total, g in zip(totals, torch.autograd.grad(p_c.log(), parameters, retain_graph=True), strict=True):
                total += p_c.detach() * g**2 / len(batch)
    return totals


@pytest.mark.parametrize("by_hooks", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_exact_fisher_is_the_sum_over_classes_of_probability_times_squared_gradient(net: str, by_hooks: bool) -> None:
    learner, size = classifier(net)
    batch = vector_batch(37, size, 3)
    for a, b in zip(diagonal_fisher(learner, [batch], by_hooks=by_hooks, exact=True).values(), by_classes(learner, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


@settings(deadline=None, max_examples=10)
@given(cut=st.integers(1, 70), order=st.permutations(range(70)))
def test_exact_fisher_depends_on_no_batching_no_order_and_no_labels(cut: int, order: list[int]) -> None:
    learner, _ = classifier("mlp")
    batch = vector_batch(70, 4, 3)
    shuffled = Batch({"x": batch.obs["x"][:, order]}, batch.start)
    whole = diagonal_fisher(learner, [batch], exact=True).values()
    for a, b in zip(diagonal_fisher(learner, shuffled.split(cut), exact=True).values(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0.0)


def test_exact_fisher_is_finite_and_vanishes_where_the_model_is_certain() -> None:
    learner = vector_learner(nn.Linear(4, 3), 3)
    with torch.no_grad():
        learner.module.layers.bias.copy_(torch.tensor([2000.0, 0.0, -2000.0]))
    for f in diagonal_fisher(learner, [vector_batch(5, 4, 3)], exact=True).values():
        assert torch.equal(f, torch.zeros_like(f))


def test_every_class_has_a_score_of_its_own_whose_value_is_that_classes_share() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(5, 4, 3)
    p = torch.softmax(learner.outputs(batch)[0], -1)
    torch.testing.assert_close(every_class(learner)(batch), (p.sqrt() * p.log()).T)


def test_exact_ewc_draws_nothing() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(20, 4, 3)
    expected = by_classes(learner, batch)
    for seed in (0, 1):
        strategy = EWC(fisher="exact", seed=seed)
        before = strategy.generator.get_state()
        strategy.end_task(Named(), learner, [batch])
        assert distance(list(strategy.anchor.precision.values()), expected) < 1e-12
        assert torch.equal(strategy.generator.get_state(), before)


@pytest.mark.parametrize(("likelihood", "steps"), [(Gaussian(2), 1), (Categorical(4), 2)], ids=["no classes", "sequences"])
def test_exact_fisher_is_refused_where_it_is_not_to_be_had(likelihood: Any, steps: int) -> None:
    learner = FixedLearner(FlatNet(nn.Linear(4, 4), "x").double(), likelihood)
    learner.sequence_length = steps
    with pytest.raises(ValueError, match=r"fisher is 'exact', allowed .*else: sampled, empirical"):
        learner.attach([EWC(fisher="exact")])
    learner.attach([EWC(fisher="sampled"), EWC(fisher="empirical")])
    learner.likelihood, learner.sequence_length = Categorical(4), 1
    learner.attach([EWC(fisher="exact")])
    assert len(learner.strategies) == 1


# path integrals, and SI


class Points(nn.Module):
    """Two vectors, far from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.5, 3.0, -1.0], dtype=torch.float64))


def points(optimizer: Callable[[Any], torch.optim.Optimizer]) -> FixedLearner:
    module = Points()
    return FixedLearner(module, Gaussian(1), optimizer(module))


Slope = dict[str, Tensor]
SLOPE: Slope = {"a": torch.tensor([1.0, -0.5]).double(), "b": torch.tensor([2.0, -1.0, 0.25]).double()}


def line(learner: FixedLearner, slope: Slope) -> Tensor:
    """A loss that is linear in the weights."""
    return sum((g * learner.weights()[n]).sum() for n, g in slope.items())  # type: ignore[return-value]


def uphill(module: Points) -> torch.optim.Optimizer:
    """Descends in a, ascends in b."""
    return torch.optim.SGD([{"params": [module.a]}, {"params": [module.b], "maximize": True}], lr=0.1)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "weight decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.2),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1),
    "uphill": uphill,
}


@pytest.mark.parametrize("limit", [None, 0.3], ids=["", "clipped"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_of_a_linear_loss_the_path_integral_is_the_drop_exactly(optimizer: str, limit: float | None) -> None:
    """omega_i = - g_i (w_i now - w_i then), whoever takes the steps and however they are clipped; all together the loss's drop."""
    learner, strategy = points(OPTIMIZERS[optimizer]), SI()
    learner.max_grad_norm = limit
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    then, before = snapshot(learner), float(line(learner, SLOPE).detach())
    for _ in range(9):
        learner.updater.step(line(learner, SLOPE))
    omega = strategy.path.omega
    for name, w in snapshot(learner).items():
        torch.testing.assert_close(omega[name], -SLOPE[name] * (w - then[name]), rtol=1e-12, atol=1e-12)
    drop = before - float(line(learner, SLOPE).detach())
    assert float(sum(o.sum() for o in omega.values())) == pytest.approx(drop, rel=1e-12)
    assert abs(drop) > 0.1
    if optimizer == "sgd":
        assert all(bool((o > 0).all()) for o in omega.values())


def drops(steepness: Slope, steps: int, time: float = 1.0) -> tuple[Weights, Weights]:
    """omega, and each weight's own drop of sum_i h_i / 2 w_i^2, after gradient flow for `time` in so many steps."""
    learner, path = points(lambda m: torch.optim.SGD(m.parameters(), lr=time / steps)), PathIntegral()
    then = snapshot(learner)
    for _ in range(steps):
        learner.optimizer.zero_grad()
        sum((0.5 * h * learner.weights()[n] ** 2).sum() for n, h in steepness.items()).backward()  # type: ignore[union-attr]
        path.before_step(learner)
        learner.optimizer.step()
        path.after_step()
    return path.omega, {n: 0.5 * steepness[n] * (then[n] ** 2 - w**2) for n, w in snapshot(learner).items()}


@pytest.mark.parametrize(
    "steepness",
    [{"a": torch.full((2,), 2.0), "b": torch.full((3,), 2.0)}, {"a": torch.tensor([0.5, 2.0]), "b": torch.tensor([1.0, 3.0, 0.1])}],
    ids=["a straight path", "a bent path"],
)
def test_of_a_quadratic_loss_the_path_integral_tends_to_the_drop_as_steps_get_small(steepness: Slope) -> None:
    """The error is the second-order term, h / 2 sum of squared steps: at most lr h / 2 of the drop or so, and half with half the step."""
    errors = []
    for steps in (100, 200, 400):
        omega, drop = drops(steepness, steps)
        relative = [(omega[n] - drop[n]) / drop[n] for n in omega]
        assert all(bool((r > 0).all()) and bool((r < 1.1 / steps * steepness[n] / 2).all()) for n, r in zip(omega, relative, strict=True))
        errors.append(torch.cat(relative))
    for coarse, fine in pairwise(errors):
        torch.testing.assert_close(fine / coarse, torch.full_like(fine, 0.5), rtol=0.02, atol=0.0)


def test_of_a_network_all_path_integrals_together_are_the_drop_of_the_loss() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(30, 4, 3)
    learner.optimizer.param_groups[0]["lr"] = 0.02
    strategy = SI()
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    losses = [learner.updater.step(learner.loss(batch)) for _ in range(100)]
    drop = losses[0] - float(learner.loss(batch).detach())
    assert float(sum(o.sum() for o in strategy.path.omega.values())) == pytest.approx(drop, rel=0.02)
    assert drop > 0.05
    strategy.end_task(Named(), learner, [batch])
    assert all(float(P.max()) > 0 for P in strategy.anchor.precision.values())


def test_a_path_goes_on_through_steps_in_which_weights_have_no_gradient() -> None:
    """Also where a weight stands in another tensor than before: it is known by its name."""
    learner, path = points(OPTIMIZERS["sgd"]), PathIntegral()
    expected = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    g = torch.Generator().manual_seed(0)
    for step, moving in enumerate(["a", "ab", "b", "ab", "ab", "", "b", "ab"]):
        if step == 4:
            learner.module.a = nn.Parameter(learner.module.a.detach().clone())
        for name, p in learner.weights().items():
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) if name in moving else None
        path.before_step(learner)
        for name, p in learner.weights().items():
            way = torch.randn(p.shape, generator=g, dtype=p.dtype)
            if p.grad is not None:
                expected[name] -= p.grad * way
            with torch.no_grad():
                p += way
        path.after_step()
    for name, omega in expected.items():
        torch.testing.assert_close(path.omega[name], omega, rtol=1e-12, atol=1e-12)


def play(learner: FixedLearner, strategy: SI, slope: Slope, steps: int = 6) -> tuple[Weights, Weights, Weights]:
    """A task with a linear loss: weights before and after it, and omega when it ends."""
    strategy.begin_task(Named(), learner)
    then = snapshot(learner)
    for _ in range(steps):
        learner.updater.step(line(learner, slope))
    omega = {n: o.clone() for n, o in strategy.path.omega.items()}
    strategy.end_task(Named(), learner, [])
    return then, snapshot(learner), omega


@pytest.mark.parametrize("damping", [1e-3, 0.1, 5.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_si_importance_is_the_drop_per_squared_distance_and_damping_summed_over_tasks(optimizer: str, damping: float) -> None:
    """Omega_i = sum_k max(0, - g_ki Delta_ki) / (Delta_ki^2 + xi); what moves the weights between tasks counts for nothing."""
    learner, strategy = points(OPTIMIZERS[optimizer]), SI(0.05, damping)
    learner.attach([strategy])
    importance = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    for task in range(3):
        slope = {n: g * (1 + 0.5 * task) for n, g in SLOPE.items()}
        then, now, _ = play(learner, strategy, slope)
        for n, w in now.items():
            way = w - then[n]
            importance[n] += (-slope[n] * way).clamp(min=0) / (way**2 + damping)
        move(learner, task)
        expected = pull(learner, 0.05, importance, now)
        assert distance(edited(learner, strategy), expected) < 1e-11 / damping
        assert max(float(e.abs().max()) for e in expected) > 1e-3


def test_si_holds_weights_that_went_uphill_not_at_all() -> None:
    learner, strategy = points(uphill), SI()
    learner.attach([strategy])
    play(learner, strategy, SLOPE)
    assert not bool(strategy.anchor.precision["b"].any())
    assert bool((strategy.anchor.precision["a"] > 0).all())


def test_sis_own_pull_changes_the_way_but_is_no_part_of_the_gradient_along_it() -> None:
    """In the second task, under a strong pull, omega_i is still the loss's own slope times the way gone."""
    learner, strategy = points(OPTIMIZERS["sgd"]), SI(strength=3.0)
    learner.attach([strategy])
    play(learner, strategy, SLOPE)
    opposite = {n: -g for n, g in SLOPE.items()}
    then, now, omega = play(learner, strategy, opposite)
    for name in omega:
        way = now[name] - then[name]
        torch.testing.assert_close(omega[name], -opposite[name] * way, rtol=1e-12, atol=1e-12)
        assert bool(((way + 0.1 * 6 * opposite[name]).abs() > 0.01).all())  # without the pull it would be - lr steps g


@pytest.mark.parametrize(
    "strategy",
    [
        SI(),
        pytest.param(
            RWalk(interval=2),
        ),
    ],
    ids=["si", "rwalk"],
)
def test_weights_may_come_while_a_task_is_learned(strategy: Any) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3))
    learner, batch = Untold(FlatNet(layers, "x").double(), Categorical(3)), vector_batch(20, 4, 3)
    learner.attach([strategy])
    learner.minibatch = batch
    strategy.begin_task(Named(), learner)
    learner.updater.step(learner.loss(batch))
    layers.append(nn.Linear(3, 3).double())
    learner.optimizer.add_param_group({"params": list(layers[1].parameters())})
    learner.attach([strategy])
    for _ in range(3):
        learner.updater.step(learner.loss(batch))
    strategy.end_task(Named(), learner, [batch])
    assert set(strategy.anchor.precision) == set(learner.weights())
    assert float(strategy.anchor.precision["layers.1.weight"].max()) > 0


# MAS


def by_differences(learner: FixedLearner, batch: Batch, step: float = 1e-5) -> Weights:
    """Mean over examples of | d |f(x)|^2 / d w |, by central differences in every single weight."""
    result = {}
    with torch.no_grad():
        for name, p in learner.weights().items():
            slopes = torch.zeros_like(p)
            for i in range(p.numel()):
                flat, values = p.view(-1), []
                for shift in (step, -2 * step):
                    flat[i] += shift
                    values.append((learner.outputs(batch) ** 2).sum((0, 2)))
                flat[i] += step
                slopes.view(-1)[i] = ((values[0] - values[1]) / (2 * step)).abs().mean()
            result[name] = slopes
    return result


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("net", ["mlp", "convolution", "layer norm"])
def test_mas_importance_by_finite_differences(net: str, length: int) -> None:
    learner, size = classifier(net)
    batch, strategy = vector_batch(9, size, 3, length), MAS()
    unlabelled = Batch(batch.obs, batch.start)
    expected = by_differences(learner, batch)
    strategy.end_task(Named(), learner, [unlabelled])
    for name, omega in strategy.anchor.precision.items():
        torch.testing.assert_close(omega, expected[name], rtol=1e-6, atol=1e-8)
    parameters = list(learner.weights().values())
    together = torch.autograd.grad((learner.outputs(batch) ** 2).sum((0, 2)).mean(), parameters)
    assert distance(list(expected.values()), [g.abs() for g in together]) > 1e-2  # the mean of absolutes is not the absolute mean


def test_mas_importance_depends_on_no_batching_and_is_of_the_first_examples() -> None:
    learner, batch = classifier("mlp")[0], vector_batch(50, 4, 3)
    found = []
    for batches in ([batch], [batch[:1], batch[1:38], batch[38:]], [batch[:45], batch[45:]]):
        strategy = MAS(examples=45)
        strategy.end_task(Named(), learner, batches)
        found.append(list(strategy.anchor.precision.values()))
    assert distance(found[0], found[1]) < 1e-12
    assert distance(found[0], found[2]) < 1e-12
    strategy = MAS(examples=46)
    strategy.end_task(Named(), learner, [batch])
    assert distance(found[0], list(strategy.anchor.precision.values())) > 1e-6


def test_mas_sums_importance_over_tasks_and_holds_to_the_last_weights() -> None:
    """The pull is the gradient of strength * sum_i Omega_i (w_i - w*_i)^2."""
    learner, strategy = classifier("mlp")[0], MAS(0.7)
    importance = {n: torch.zeros_like(p) for n, p in learner.weights().items()}
    for task in range(3):
        last, batch = move(learner, task), vector_batch(7, 4, 3, seed=task)
        expected = by_single_examples(learner, batch, lambda b: (learner.outputs(b) ** 2).sum((0, 2))[None], 1)
        strategy.end_task(Named(task), learner, [batch])
        importance = {n: total + e for (n, total), e in zip(importance.items(), expected, strict=True)}
        move(learner, 10 + task)
        assert distance(edited(learner, strategy), pull(learner, 0.7, importance, last)) < 1e-10


# RWalk


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
        self.updater.step(self.loss(batch))


def regression_batches(task: int, count: int) -> list[Batch]:
    """Each of 4 examples, with another scale of x in each."""
    g = torch.Generator().manual_seed(task)
    best = torch.tensor([[2.0, -1.0], [-1.0, 3.0], [0.5, 0.5]], dtype=torch.float64)[task]
    batches = []
    for i in range(count):
        x = torch.randn(1, 4, 2, generator=g, dtype=torch.float64) * torch.tensor([0.5 + 0.3 * i, 1.5])
        batches.append(Batch({"x": x}, torch.ones(1, 4, dtype=torch.bool), (x @ best)[..., None]))
    return batches


class HandMade:
    """Riemannian walk of two weights as the paper writes it: eq. 6, 8 and sections 4.1 and 4.3."""

    def __init__(self, strength: float, interval: int, decay: float, w: Tensor) -> None:
        self.strength, self.interval, self.decay, self.w = strength, interval, decay, w
        self.fisher: Tensor | None = None
        self.past: Tensor | None = None
        self.importance, self.center = torch.zeros(2).double(), torch.zeros(2).double()

    def learn(self, batches: Sequence[Batch]) -> None:
        score = torch.zeros(2).double()
        for first in range(0, len(batches), self.interval):
            x = batches[first].obs["x"][0]
            now = (x**2).mean(0)
            self.fisher = now if self.fisher is None else self.decay * self.fisher + (1 - self.decay) * now
            start, drop = self.w, torch.zeros(2).double()
            for batch in batches[first : first + self.interval]:
                x, y = batch.obs["x"][0], batch.target[0, :, 0]  # type: ignore[index]
                own = -((y - x @ self.w)[:, None] * x).mean(0)
                after = self.w - 0.1 * (own + 2 * self.strength * self.importance * (self.w - self.center))
                drop -= own * (after - self.w)
                self.w = after
            score += drop.clamp(min=0) / (0.5 * self.fisher * (self.w - start) ** 2 + 1e-3)
        assert self.fisher is not None
        scaled = score / score.max()
        self.past = scaled if self.past is None else (self.past + scaled) / 2
        self.importance, self.center = self.fisher / self.fisher.max() + self.past, self.w


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("interval", [1, 2, 3, 50])
def test_rwalk_of_two_weights_by_hand(interval: int, decay: float) -> None:
    learner, strategy = Regression(), RWalk(0.2, interval, decay)
    learner.attach([strategy])
    hand = HandMade(0.2, interval, decay, learner.w)
    for task in range(3):
        batches = regression_batches(task, 7)
        strategy.begin_task(Named(task), learner)
        for batch in batches:
            learner.take_step(batch)
        strategy.end_task(Named(task), learner, batches)
        hand.learn(batches)
        torch.testing.assert_close(learner.w, hand.w, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(strategy.anchor.precision["layers.weight"][0], hand.importance, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(strategy.anchor.center["layers.weight"][0], hand.center, rtol=1e-12, atol=1e-12)
    assert float((hand.importance[0] - hand.importance[1]).abs()) > 0.03


def test_rwalks_first_step_in_numbers() -> None:
    """x = (1, 2), y = 1, w = 0, lr 0.1: g = -(1, 2), way 0.1 (1, 2), omega 0.1 (1, 4), F (1, 4), and so on to the score."""
    learner, strategy = Regression(), RWalk(1.0, interval=1)
    learner.move([0.0, 0.0])
    learner.attach([strategy])
    batch = Batch({"x": torch.tensor([[[1.0, 2.0]]]).double()}, torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, 1).double())
    learner.take_step(batch)
    strategy.end_task(Named(), learner, [batch])
    score = [0.1 / (0.5 * 1 * 0.01 + 1e-3), 0.4 / (0.5 * 4 * 0.04 + 1e-3)]  # 16.7 and 4.9: the first is the larger
    expected = torch.tensor([0.25 + 1.0, 1.0 + score[1] / score[0]]).double()
    torch.testing.assert_close(strategy.anchor.precision["layers.weight"][0], expected, rtol=1e-6, atol=0.0)
    assert strategy.anchor.center["layers.weight"][0].tolist() == [0.1, 0.2]


def test_rwalk_scales_both_parts_to_at_most_1_over_all_layers() -> None:
    learner = classifier("mlp")[0]
    strategy = RWalk(interval=2)
    learner.attach([strategy])
    for task in range(2):
        learner.minibatch = vector_batch(30, 4, 3, seed=task)
        for _ in range(5):
            learner.updater.step(learner.loss(learner.minibatch))
        strategy.end_task(Named(task), learner, [learner.minibatch])
        fisher = max(float(F.max()) for F in strategy.fisher.values())
        parts = [strategy.anchor.precision[n] - F / fisher for n, F in strategy.fisher.items()]
        largest = max(float(s.max()) for s in parts)
        assert largest == pytest.approx(1.0, rel=1e-9) if task == 0 else 0.5 <= largest <= 1.0 + 1e-9
        assert min(float(s.min()) for s in parts) > -1e-12


def test_rwalks_pull_is_its_penaltys_gradient() -> None:
    """strength * sum_i (F_i + s_i) (w_i - w*_i)^2"""
    learner, strategy = Regression(), RWalk(0.7, interval=2)
    learner.attach([strategy])
    batches = regression_batches(0, 5)
    for batch in batches:
        learner.take_step(batch)
    strategy.end_task(Named(), learner, batches)
    hand = HandMade(0.7, 2, 0.9, torch.tensor([0.3, -0.2]).float().double())
    hand.learn(batches)
    learner.move([5.0, -7.0])
    expected = pull(learner, 0.7, {"layers.weight": hand.importance[None]}, {"layers.weight": hand.center[None]})
    assert distance(edited(learner, strategy), expected) < 1e-10


def test_rwalk_waits_for_the_first_batch() -> None:
    """A step of which nobody says what it learned from is no part of any interval."""
    learner, strategy = Regression(), RWalk(interval=2)
    learner.attach([strategy])
    batch = regression_batches(0, 1)[0]
    learner.updater.step(learner.loss(batch))
    strategy.end_task(Named(), learner, [batch])
    assert not strategy.anchor


@pytest.mark.parametrize(
    "strategy",
    [
        SI(),
        pytest.param(
            RWalk(interval=2),
        ),
    ],
    ids=["si", "rwalk"],
)
def test_tasks_that_were_learned_together_and_end_together_count_once(strategy: Any) -> None:
    learner = Regression()
    learner.attach([strategy])
    batches = regression_batches(0, 5)
    for task in range(2):
        strategy.begin_task(Named(task), learner)
    for batch in batches:
        learner.take_step(batch)
    strategy.end_task(Named(0), learner, batches)
    once = dict(strategy.anchor.precision)
    strategy.end_task(Named(1), learner, batches)
    assert distance(list(strategy.anchor.precision.values()), list(once.values())) < 1e-12


# new classes, and nobody tells the task

HOLDS_WEIGHTS = ["ewc", "ewc_kfac", "si", "mas", "rwalk"]


def warnings_of(learner: SupervisedLearner, strategy: Strategy, tasks: Sequence[int], world: dict[str, Any]) -> list[list[str]]:
    """What is said at the end of each task."""
    said = []
    for task in tasks:
        batch = learner.rollout(stream(**world), [task], 3, seed=task)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.end_task(learner.world.tasks[task], learner, [batch])
        said.append([str(w.message) for w in caught])
    return said


def stream_case(names: Sequence[str], **world: Any) -> tuple[SupervisedLearner, list[Strategy]]:
    learner = SupervisedLearner(mlp(2 if world.get("label_space") == "within_task" else 10), stream(**world))
    strategies = [STRATEGIES[name]() for name in names]
    learner.attach(strategies)
    return learner, strategies


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_new_classes_without_a_cue_are_warned_of_once_with_the_reason(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    first, second, *later = warnings_of(learner, strategy, [0, 1, 2, 3], {})
    assert first == []
    assert len(second) == 1
    assert second[0].startswith(f"{name} holds weights, which does not help where each task brings new classes and the task is not told")
    assert "pushes the old ones' logits down" in second[0]
    assert later == [[], []]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_it_is_a_warning_to_whoever_calls(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    batches = [learner.rollout(stream(), [task], 3, seed=0) for task in (0, 1)]
    strategy.end_task(learner.world.tasks[0], learner, batches[:1])
    with pytest.warns(UserWarning, match=f"^{name} holds weights.*such as er_ace or derpp, or a head per task"):
        strategy.end_task(learner.world.tasks[1], learner, batches[1:])


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
@pytest.mark.parametrize("world", [{"label_space": "within_task"}, {"task_cue": True}], ids=["the same labels", "the task is told"])
def test_nobody_is_warned_where_weights_are_worth_holding(name: str, world: dict[str, Any]) -> None:
    learner, (strategy,) = stream_case([name], **world)
    assert warnings_of(learner, strategy, [0, 1, 2], world) == [[], [], []]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["before", "after"])
@pytest.mark.parametrize("beside", ["replay", "der", "er_ace"])
@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_nobody_is_warned_beside_stored_examples(name: str, beside: str, order: list[int]) -> None:
    names = [name, beside]
    learner, strategies = stream_case([names[i] for i in order])
    assert warnings_of(learner, strategies[order.index(0)], [0, 1, 2], {}) == [[], [], []]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_what_holds_nothing_warns_of_nothing(name: str) -> None:
    learner = SupervisedLearner(mlp(), stream())
    strategy = STRATEGIES[name](strength=0.0)
    learner.attach([strategy])
    assert warnings_of(learner, strategy, [0, 1], {}) == [[], []]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_one_label_in_common_is_enough_and_all_past_labels_count(name: str) -> None:
    """{0, 1}, {1, 2}, {0}: each has a label that came before; {3} has none."""
    learner = Untold(FlatNet(nn.Linear(4, 5), "x").double(), Categorical(5))
    strategy = STRATEGIES[name]()
    learner.attach([strategy])
    said = []
    for labels in ([0, 1], [1, 2], [0], [3], [4]):
        x = vector_batch(6, 4, 5)
        batch = Batch(x.obs, x.start, torch.tensor(labels).repeat(6)[None, :6])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.end_task(Named(), learner, [batch])
        said.append(len(caught))
    assert said == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("name", HOLDS_WEIGHTS)
def test_a_restored_strategy_remembers_labels_and_that_it_has_warned(name: str) -> None:
    learner, (strategy,) = stream_case([name])
    said = []
    for task in range(3):
        said += warnings_of(learner, strategy, [task], {})
        restored = STRATEGIES[name]()
        restored.load_state_dict(strategy.state_dict())
        strategy = restored
        learner.attach([strategy])
    assert [len(s) for s in said] == [0, 1, 0]


def test_stored_examples_are_looked_for_among_all_strategies_of_the_learner() -> None:
    """Not of its own list alone: the same strategy warns when nothing else is attached."""
    learner, (strategy,) = stream_case(["si"])
    learner.attach([strategy, Replay()])
    assert warnings_of(learner, strategy, [0, 1], {}) == [[], []]
    learner.attach([strategy])
    assert [len(s) for s in warnings_of(learner, strategy, [0, 1], {})] == [0, 1]


STRENGTHS: Any = [-0.5, float("nan"), float("inf")]
REFUSED: list[tuple[type[Strategy], list[dict[str, Any]]]] = [
    (SI, keyword_grid(strength=STRENGTHS, damping=[0.0, -1.0, float("nan")])),
    (MAS, keyword_grid(strength=STRENGTHS, examples=[0, -3])),
    (RWalk, keyword_grid(strength=STRENGTHS, interval=[0, -2], decay=[-0.1, 1.5, float("nan")])),
]


@pytest.mark.parametrize(("strategy", "bad"), [(strategy, bad) for strategy, every in REFUSED for bad in every], ids=str)
def test_settings_that_cannot_be_are_refused_by_name_and_value(strategy: Any, bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"^{name} is {value}, allowed: "):
        strategy(**bad)
