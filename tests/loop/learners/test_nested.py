"""The nested optimizer, compared with its equation step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import mlp, same, stream, weights
from torch import Tensor, nn

from everloop.agents import MLP, Classifier, NestedConvNet
from everloop.loop import EWC, NestedOptimizer, SupervisedLearner, levels_by_depth

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
makes: Any = st.sampled_from(sorted(OPTIMIZERS))
periods_of: Any = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True)


def parameters(count: int = 3, seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(2, 3, dtype=torch.float64)) for _ in range(count)]


def loss(ps: list[nn.Parameter], step: int) -> Tensor:
    """A coupled, nonlinear loss with bounded gradients; it changes at every step."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(2, 3, generator=g, dtype=torch.float64)
    return torch.stack(
        [((p - x).cosh().log() * (i + 1) + (p * x - ps[0]).sin()).sum() for i, p in enumerate(ps)]
    ).sum()


def run(optimizer: torch.optim.Optimizer, ps: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss(ps, step).backward()
        optimizer.step()


def naive(make: Make, ps: list[nn.Parameter], periods: list[int], steps: int) -> None:
    """The equation: add up the steps of the inner optimizer, and apply the sum every C steps."""
    optimizer = make(ps)
    sums = [torch.zeros_like(p) for p in ps]
    for step in range(steps):
        before = [p.detach().clone() for p in ps]
        run(optimizer, ps, range(step, step + 1))
        for p, old, total, period in zip(ps, before, sums, periods, strict=True):
            with torch.no_grad():
                total += p - old
                p.copy_(old)
                if (step + 1) % period == 0:
                    p += total
                    total.zero_()


@given(kind=makes, periods=periods_of, steps=st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_the_optimizer_follows_its_equation(kind: str, periods: list[int], steps: int) -> None:
    ps, expected = parameters(len(periods)), parameters(len(periods))
    run(
        NestedOptimizer(
            OPTIMIZERS[kind](ps), {period: [p] for period, p in zip(periods, ps, strict=True)}
        ),
        ps,
        range(steps),
    )
    naive(OPTIMIZERS[kind], expected, periods, steps)
    for p, e in zip(ps, expected, strict=True):
        torch.testing.assert_close(p, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_period_1_is_the_inner_optimizer_bit_for_bit(kind: str) -> None:
    ps, plain = parameters(), parameters()
    run(NestedOptimizer(OPTIMIZERS[kind](ps), {1: ps[:2]}), ps, range(20))
    run(OPTIMIZERS[kind](plain), plain, range(20))
    assert same(ps, plain)


@given(period=st.integers(2, 9))
@settings(deadline=None, max_examples=8)
def test_sgd_moves_a_level_by_the_sum_of_its_gradients(period: int) -> None:
    ps = parameters(1)
    start = ps[0].detach().clone()
    optimizer = NestedOptimizer(torch.optim.SGD(ps, lr=0.1), {period: ps})
    run(optimizer, ps, range(period - 1))
    assert torch.equal(ps[0], start)
    run(optimizer, ps, range(period - 1, period))
    still = [nn.Parameter(start)]
    total = sum(torch.autograd.grad(loss(still, step), still)[0] for step in range(period))
    torch.testing.assert_close(ps[0].detach(), start - 0.1 * total)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_restored_within_a_period_continues_bit_for_bit(kind: str) -> None:
    ps = parameters()
    optimizer = NestedOptimizer(OPTIMIZERS[kind](ps), {4: ps[:1], 7: ps[1:2]})
    run(optimizer, ps, range(10))
    other = [nn.Parameter(p.detach().clone()) for p in ps]
    resumed = NestedOptimizer(OPTIMIZERS[kind](other), {4: other[:1], 7: other[1:2]})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, ps, range(10, 25))
    run(resumed, other, range(10, 25))
    assert same(ps, other)
    with pytest.raises(
        ValueError, match=r"^the state has the periods \[4, 7\]; this optimizer needs \[4\]"
    ):
        NestedOptimizer(OPTIMIZERS[kind](other), {4: other[:1]}).load_state_dict(
            optimizer.state_dict()
        )


def test_learning_rate_schedules_reach_the_inner_optimizer() -> None:
    ps, expected = parameters(1), parameters(1)
    optimizer = NestedOptimizer(torch.optim.SGD(ps, lr=0.1), {3: ps})
    plain = torch.optim.SGD(expected, lr=0.1)
    for o, of in ((optimizer, ps), (plain, expected)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(o, 0.5)
        start = of[0].detach().clone()
        for step in range(3):
            o.zero_grad()
            loss([nn.Parameter(start)] if o is plain else of, step)
            of[0].grad = torch.ones_like(of[0])
            o.step()
            schedule.step()
        torch.testing.assert_close(of[0].detach(), start - 0.1 * (1 + 0.5 + 0.25))


def test_closures_and_hooks_are_called_once_per_step() -> None:
    ps, calls = parameters(), []
    optimizer = NestedOptimizer(torch.optim.SGD(ps, lr=0.1), {2: ps})
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        calls.append("loss")
        optimizer.zero_grad()
        value = loss(ps, 0)
        value.backward()
        return value.detach()

    assert float(optimizer.step(closure)) == float(loss(ps, 0).detach())
    assert calls == ["before", "loss", "after"]


def test_a_nested_optimizer_works_in_a_learner_with_ewc() -> None:
    """Slow blocks of the network change only at the end of their period."""
    torch.manual_seed(0)
    module = Classifier(NestedConvNet((8, 8, 1), 8, periods=(1, 5)), 10)
    backbone: Any = module.backbone
    levels = backbone.levels()
    learner = SupervisedLearner(
        module,
        stream(8),
        optimizer=NestedOptimizer(torch.optim.Adam(module.parameters(), fused=True), levels),
    )
    learner.attach([EWC(10.0)])
    slow, fast = ([p.detach().clone() for p in levels[period]] for period in (5, 1))
    learner.learn([0], 4 * 8)
    assert same(levels[5], slow)
    assert not same(levels[1], fast)
    learner.learn([0], 8)
    assert not same(levels[5], slow)


@given(periods=st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True))
@settings(deadline=None, max_examples=30)
def test_levels_by_depth_divide_parameters_with_the_first_period_last(periods: list[int]) -> None:
    module = Classifier(MLP((8, 8, 1), (4, 5)), 3)
    levels, expected = levels_by_depth(module, periods), list(module.parameters())
    assert list(levels) == periods
    joined = [p for period in reversed(periods) for p in levels[period]]
    assert all(a is b for a, b in zip(joined, expected, strict=True))
    assert max(map(len, levels.values())) - min(map(len, levels.values())) <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ps: {0: ps}, "^a level's period is 0; it must be 1 or more"),
        (
            lambda ps: {2: ps, 3: ps[:1]},
            "^a parameter of level 3 occurs twice; list each parameter once",
        ),
        (lambda ps: {2: [*ps, ps[0]]}, "^a parameter of level 2 occurs twice"),
        (
            lambda ps: {2: parameters(1, seed=5)},
            r"^level 2 has a parameter of shape \(2, 3\) that does not belong to the optimizer",
        ),
    ],
)
def test_invalid_levels_are_refused(make: Any, message: str) -> None:
    ps = parameters()
    with pytest.raises(ValueError, match=message):
        NestedOptimizer(torch.optim.SGD(ps, lr=0.1), make(ps))


@pytest.mark.parametrize("periods", [[], [1] * 2, list(range(1, 30))])
def test_invalid_periods_are_refused(periods: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^periods are .*; give 1 to 4 different periods"):
        levels_by_depth(mlp(), periods)
    assert len(weights(mlp())) == 4
