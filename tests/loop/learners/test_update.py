"""One update: the order of the calls, the gradient, clipping, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    control_learner,
    digit_learner,
    distance,
    foreign_step,
    off_policy_learner,
    same,
    update,
    vector_batch,
    vector_learner,
    weights,
)
from stub_helpers import Decay
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from everloop.loop import Batch, Effect, Forward, Learner, NotFiniteError, Strategy


class Push(Strategy):
    """Adds `slope` * sum of weights to the loss and `push` to the gradient; records each call."""

    def __init__(
        self, name: str, calls: list[str], slope: float | None = None, push: float = 0.0
    ) -> None:
        self.name = name
        self.calls = calls
        self.slope = slope
        self.push = push
        self.batches: list[Batch] = []
        self.found: list[list[Tensor]] = []
        self.after: list[list[Tensor]] = []

    def loss(
        self, fresh: Forward | None, replayed: Forward | None, learner: Learner
    ) -> Tensor | None:
        self.calls.append(f"{self.name}.loss")
        assert fresh is not None
        assert replayed is None
        self.batches.append(fresh.batch)
        if self.slope is None:
            return None
        return self.slope * torch.stack([p.sum() for p in learner.module.parameters()]).sum()

    def edit_gradients(self, batch: Batch, learner: Learner) -> None:
        self.calls.append(f"{self.name}.edit_gradients")
        self.batches.append(batch)
        self.found.append(
            [p.grad.clone() for p in learner.module.parameters() if p.grad is not None]
        )
        for p in learner.module.parameters():
            assert p.grad is not None
            p.grad += self.push

    def after_step(self, batch: Batch, learner: Learner) -> None:
        self.calls.append(f"{self.name}.after_step")
        self.after.append(weights(learner.module))


def classifier(lr: float = 1.0, max_grad_norm: float | None = None) -> tuple[FixedLearner, Batch]:
    torch.manual_seed(0)
    learner, batch = vector_learner(nn.Linear(3, 2), 2), vector_batch(8, 3, 2)
    learner.optimizer.param_groups[0]["lr"] = lr
    learner.max_grad_norm = max_grad_norm
    return learner, batch


def gradient(learner: FixedLearner, batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(learner.loss(batch), list(learner.module.parameters())))


def test_strategies_are_called_in_order_with_the_current_gradient() -> None:
    """All losses are in the gradient when it is edited. `after_step` comes in reverse order."""
    learner, batch = classifier()
    calls: list[str] = []
    a, b = Push("a", calls, slope=0.5, push=2.0), Push("b", calls, slope=0.25)
    learner.attach([a, b])
    before, plain = weights(learner.module), gradient(learner, batch)
    update(learner, batch)
    assert calls == [
        "a.loss",
        "b.loss",
        "a.edit_gradients",
        "b.edit_gradients",
        "b.after_step",
        "a.after_step",
    ]
    seen = [*a.batches, *b.batches]
    assert all(x.obs is batch.obs and x.target is batch.target for x in seen)
    for g, found_a, found_b, w, after_a, after_b in zip(
        plain, a.found[0], b.found[0], before, a.after[0], b.after[0], strict=True
    ):
        torch.testing.assert_close(found_a, g + 0.75)
        torch.testing.assert_close(found_b, found_a + 2.0)
        torch.testing.assert_close(after_a, w - found_b)
        assert torch.equal(after_a, after_b)


@settings(deadline=None, max_examples=30)
@given(limit=st.floats(0.01, 20.0), push=st.floats(-3.0, 3.0))
def test_the_edited_gradient_is_clipped_as_by_torch(limit: float, push: float) -> None:
    learner, batch = classifier(max_grad_norm=limit)
    learner.attach([Push("a", [], slope=0.5, push=push)])
    before, edited = weights(learner.module), [g + 0.5 + push for g in gradient(learner, batch)]
    copies = [nn.Parameter(w.clone()) for w in before]
    for p, g in zip(copies, edited, strict=True):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(copies, limit)
    update(learner, batch)
    for w, p, now in zip(before, copies, weights(learner.module), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(now, w - p.grad, rtol=1e-12, atol=1e-12)


def test_without_max_grad_norm_nothing_is_clipped() -> None:
    learner, batch = classifier()
    learner.attach([Push("a", [], push=1e6)])
    before, plain = weights(learner.module), gradient(learner, batch)
    update(learner, batch)
    for w, g, now in zip(before, plain, weights(learner.module), strict=True):
        torch.testing.assert_close(now, w - g - 1e6)


def test_a_step_ignores_old_gradients_and_returns_its_loss() -> None:
    learner, batch = classifier()
    before = weights(learner.module)
    plain = gradient(learner, batch)
    loss = learner.loss(batch)
    for p in learner.module.parameters():
        p.grad = torch.full_like(p, 1e3)
    assert learner.updater.step(loss, batch) == float(loss.detach())
    for w, g, now in zip(before, plain, weights(learner.module), strict=True):
        torch.testing.assert_close(now, w - g)


def test_updater_and_foreign_loop_take_the_same_step() -> None:
    learner, batch = classifier()
    other, _ = classifier()
    for one in (learner, other):
        one.attach([Push("a", [], slope=0.5, push=2.0)])
    update(learner, batch)
    found = other.updater.fresh_gradients(Forward(batch, other.forward(batch)), [])
    assert found is not None
    assert not found.replace
    direct = sum((g * w).sum() for w, g in found.weights)
    foreign_step(other, other.loss(batch) + direct, batch)
    assert same(weights(learner.module), weights(other.module))


@pytest.mark.parametrize("make", [digit_learner, control_learner, off_policy_learner])
def test_every_learner_adds_a_loss_of_the_weights(make: Any) -> None:
    ends = []
    for strategies in ([Decay(as_loss=True)], [Decay(as_loss=False)], []):
        learner = make()
        learner.seed(0)
        learner.attach(strategies)
        learner.learn([0], 32)
        ends.append(weights(learner.module))
    assert distance(ends[0], ends[1]) < 1e-5
    assert distance(ends[0], ends[2]) > 1e-3


@pytest.mark.parametrize("strategies", [False, True])
@pytest.mark.parametrize("kind", ["optimizer", "global", "schedule"])
def test_other_hooks_on_the_optimizer_still_run(kind: str, strategies: bool) -> None:
    learner, batch = classifier()
    calls: list[str] = []
    if strategies:
        learner.attach([Push("a", calls)])

    def hook(*args: Any) -> None:
        calls.append("other")

    if kind == "schedule":
        step = learner.optimizer.step
        learner.optimizer.step = lambda *args, **kwargs: (hook(), step(*args, **kwargs))[1]  # type: ignore[method-assign]
        handle = None
    else:
        handle = (
            learner.optimizer.register_step_post_hook(hook)
            if kind == "optimizer"
            else register_optimizer_step_post_hook(hook)
        )
    before = weights(learner.module)
    update(learner, batch)
    if handle is not None:
        handle.remove()
    assert sorted(calls) == sorted(
        ["other", *["a.loss", "a.edit_gradients", "a.after_step"] * strategies]
    )
    assert not same(before, weights(learner.module))


def test_attaching_replaces_strategies_and_detaching_stops_them() -> None:
    learner, batch = classifier()
    calls: list[str] = []
    for name in ("a", "b"):
        learner.attach([Push(name, calls)])
    update(learner, batch)
    assert calls == ["b.loss", "b.edit_gradients", "b.after_step"]
    learner.updater.detach()
    learner.optimizer.step()
    assert len(calls) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_nonfinite_loss_changes_nothing_and_reports_the_step(value: float) -> None:
    learner, batch = classifier()
    calls: list[str] = []
    learner.attach([Push("a", calls)])
    learner.steps, before = 1234, weights(learner.module)
    with pytest.raises(NotFiniteError, match=f"the loss is {value} at step 1234"):
        learner.updater.step(learner.loss(batch) + value, batch)
    assert same(weights(learner.module), before)
    assert calls == []


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_a_nonfinite_loss_of_a_strategy_changes_no_weight(max_grad_norm: float | None) -> None:
    learner, batch = classifier(max_grad_norm=max_grad_norm)
    learner.attach([Push("a", [], slope=float("nan"))])
    learner.steps, before = 1234, weights(learner.module)
    with pytest.raises(NotFiniteError, match="step 1234"):
        update(learner, batch)
    assert same(weights(learner.module), before)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("push", [float("nan"), float("inf")])
def test_a_nonfinite_gradient_changes_no_weight(push: float, max_grad_norm: float | None) -> None:
    learner, batch = classifier(max_grad_norm=max_grad_norm)
    learner.attach([Push("a", [], push=push)])
    learner.steps, before = 1234, weights(learner.module)
    with pytest.raises(NotFiniteError, match=r"gradient.* at step 1234"):
        update(learner, batch)
    assert same(weights(learner.module), before)


class Replacing(Strategy):
    """Replaces the task loss by `factor` times it, without its graph if `graph` is False."""

    effects = frozenset({Effect.REPLACES_LOSS})

    def __init__(self, factor: float, graph: bool = True) -> None:
        self.factor, self.graph = factor, graph

    def loss(
        self, fresh: Forward | None, replayed: Forward | None, learner: Learner
    ) -> Tensor | None:
        assert fresh is not None
        loss = self.factor * learner.loss_of(fresh.output.prediction, fresh.batch.target)  # type: ignore[arg-type]
        return loss if self.graph else loss.detach()


@pytest.mark.parametrize("first", [True, False])
def test_one_loss_replaces_the_task_loss_and_others_are_added(first: bool) -> None:
    learner, batch = classifier()
    strategies = [Replacing(3.0), Push("a", [], slope=0.5)]
    learner.attach(strategies if first else strategies[::-1])
    before = weights(learner.module)
    plain = gradient(learner, batch)
    loss = learner.loss(batch)
    added = 0.5 * sum(float(w.sum()) for w in before)
    assert update(learner, batch) == pytest.approx(3 * float(loss.detach()) + added)
    for w, g, now in zip(before, plain, weights(learner.module), strict=True):
        torch.testing.assert_close(now, w - 3 * g - 0.5)


def test_a_loss_without_a_graph_is_returned_but_has_no_gradient() -> None:
    learner, batch = classifier()
    learner.attach([Replacing(1.0, graph=False), Push("a", [], push=2.0)])
    before, loss = weights(learner.module), float(learner.loss(batch).detach())
    assert update(learner, batch) == pytest.approx(loss)
    assert same(weights(learner.module), [w - 2.0 for w in before])


def test_a_step_without_an_observed_batch_is_refused() -> None:
    learner, batch = classifier()
    learner.attach([Push("a", [])])
    learner.loss(batch).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="the optimizer stepped without an observed batch"):
        learner.optimizer.step()


def test_an_unfinished_gradient_of_other_weights_is_refused() -> None:
    learner = vector_learner(nn.Linear(4, 3), 3)
    learner.updater.step(learner.loss(vector_batch(4, 4, 3)), vector_batch(4, 4, 3), parts=2)
    state = learner.updater.state_dict()
    learner.updater.load_state_dict(state)
    with pytest.raises(ValueError, match="shorter"):
        learner.updater.load_state_dict(state | {"gradients": state["gradients"][:1]})
