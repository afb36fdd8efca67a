"""EWC in the supervised loop: its gradient, its optimum and its Fisher information."""

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
    control_learner,
    digit_learner,
    distance,
    plant,
    random_states,
    same,
    stream,
    update,
    weights,
)
from strategy_helpers import Named
from torch import Tensor, nn

from everloop.loop import EWC, Batch, Gaussian, SupervisedLearner, diagonal_fisher
from everloop.loop.batch import subsample

Anchors = list[tuple[list[Tensor], list[Tensor]]]


def precision(ewc: EWC) -> list[Tensor]:
    """The precision of every weight."""
    return list(ewc.penalty.precision.values())


def end_task(learner: SupervisedLearner, ewc: EWC, task: int) -> Batch:
    batch = learner.rollout(stream(), [task], 4, seed=task)
    ewc.end_task(learner.world.tasks[task], [batch], learner)
    return batch


def anchor(learner: SupervisedLearner, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """The empirical Fisher information, by a loop over examples, and the weights."""
    return diagonal_fisher(learner, [batch], by_hooks=False).values(), weights(learner.module)


def empirical(strength: float, decay: float | None) -> EWC:
    """EWC with separate anchors, or online EWC if there is a decay."""
    return (
        EWC(strength, fisher="empirical")
        if decay is None
        else EWC(strength, "online", decay, "empirical")
    )


def penalty(module: nn.Module, anchors: Anchors, strength: float, decay: float | None) -> Tensor:
    """Separate: strength / 2 sum_k sum_i F_ki (w_i - w*_ki)^2.

    Online: every F_k is decayed, the last one once (gamma F in Schwarz et al. 2018, eq. 9), and all
    share the last weights as anchor.
    """
    total = torch.zeros((), dtype=torch.float64)
    for k, (fisher, then) in enumerate(anchors):
        share = 1.0 if decay is None else decay ** (len(anchors) - k)
        then = then if decay is None else anchors[-1][1]
        for w, f, w_then in zip(module.parameters(), fisher, then, strict=True):
            total = total + share * (f * (w - w_then) ** 2).sum()
    return strength / 2 * total


SGD: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
ADAM: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("decay", [None, 1.0, 0.6], ids=["separate", "online", "online with decay"])
def test_ewc_trains_as_with_its_penalty_in_the_loss(
    decay: float | None, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """Closed-form gradients and autograd of the penalty give the same weights over three tasks."""
    strength, steps = 30.0, 96
    learner = digit_learner(optimizer)
    ewc = empirical(strength, decay)
    learner.attach([ewc])
    plain = digit_learner(optimizer)  # its update is written out below
    anchors = Anchors()
    for task in range(3):
        learner.learn([task], steps)
        obs, _ = plain.world.reset(options={"task": task})
        for _ in range(steps // plain.world.num_envs):
            image = torch.from_numpy(obs["image"])[None]
            logits = plain.outputs(Batch({"image": image}, torch.ones(1, 8, dtype=torch.bool)))[0]
            obs, _, _, _, info = plain.world.step(logits.argmax(-1).numpy())
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(info["label"]))
            total = loss + penalty(plain.module, anchors, strength, decay)
            plain.optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            plain.optimizer.step()
        assert distance(weights(learner.module), weights(plain.module)) < 1e-9
        batch = end_task(learner, ewc, task)
        anchors.append(anchor(plain, batch))
    moved = penalty(plain.module, anchors[:1], strength, None)
    assert float(moved.detach()) > 1e-3, "the weights never left the first anchor"


@pytest.mark.parametrize("decay", [None, 0.3, 0.6])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_ewcs_closed_form_is_the_gradient_of_its_penalty(tasks: int, decay: float | None) -> None:
    learner = digit_learner()
    ewc, anchors = empirical(7.0, decay), Anchors()
    for task in range(tasks):
        learner.learn([task], 64)
        anchors.append(anchor(learner, end_task(learner, ewc, task)))
    learner.learn([4], 64)
    parameters = list(learner.module.parameters())
    expected = torch.autograd.grad(penalty(learner.module, anchors, 7.0, decay), parameters)
    for p in parameters:
        p.grad = torch.full_like(p, 0.5)
    ewc.edit_gradients(None, learner)
    for p, g in zip(parameters, expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, 0.5 + g, rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


class Sigma(Gaussian):
    """Samples one standard deviation above the mean, so that the sampled Fisher is exact."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = self.split(p)
        return mean + log_std.exp()


class Line(nn.Module):
    """Predicts the mean w x with standard deviation parameter 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.w
        return torch.stack([mean, torch.zeros_like(mean)], -1)


def quadratic(scale: list[float], best: list[float]) -> Batch:
    """Examples whose negative log-likelihood under `Line` is quadratic, with minimum `best`."""
    x = torch.diag(torch.tensor(scale, dtype=torch.float64))[None]
    return Batch(
        {"x": x},
        torch.ones(1, len(scale), dtype=torch.bool),
        (x @ torch.tensor(best, dtype=torch.float64))[..., None],
    )


def descend(learner: FixedLearner, batch: Batch) -> None:
    for _ in range(120):
        update(learner, batch)


class Quadratic(FixedLearner):
    def loss(self, batch: Batch) -> Tensor:
        assert batch.target is not None
        return -self.likelihood.log_prob(self.outputs(batch), batch.target).mean()


numbers = st.floats(-1.0, 1.0)
scales = st.floats(0.8, 1.2)


@settings(deadline=None, max_examples=10)
@given(
    tasks=st.lists(
        st.tuples(
            st.lists(scales, min_size=2, max_size=2), st.lists(numbers, min_size=2, max_size=2)
        ),
        min_size=2,
        max_size=3,
    ),
    strength=st.floats(0.1, 1.5),
)
def test_on_quadratic_losses_ewc_reaches_the_precision_weighted_mean(
    tasks: list[tuple[list[float], list[float]]], strength: float
) -> None:
    """After task K: w = (P_K w_K + strength sum_k P_k w_k) / (P_K + strength sum_k P_k), k < K.

    w_K is the minimum of task K and w_k the weights at the end of task k. With strength 1, w is the
    minimum of the sum of all losses.
    """
    learner = Quadratic(FlatNet(Line(2), "x"), Sigma(1))
    variance = torch.exp(2 * Gaussian(1).split(torch.zeros(2))[1]).double()
    learner.optimizer.param_groups[0]["lr"] = 0.3
    ewc = EWC(strength)
    learner.attach([ewc])
    weighted, precision = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for k, (scale, best) in enumerate(tasks):
        batch = quadratic(scale, best)
        # two examples, one for each weight
        own = torch.tensor(scale, dtype=torch.float64) ** 2 / variance / 2
        descend(learner, batch)
        expected = (own * torch.tensor(best) + strength * weighted) / (own + strength * precision)
        torch.testing.assert_close(learner.module.layers.w.detach(), expected, rtol=1e-6, atol=1e-7)
        ewc.end_task(Named(k), [batch], learner)
        weighted, precision = weighted + own * expected, precision + own


def test_ewc_averages_over_evenly_spaced_examples() -> None:
    learner = digit_learner()
    batch = learner.rollout(stream(), [0], 4, seed=0)
    some = EWC(1.0, examples=10)
    same_ones = EWC(1.0)
    other = EWC(1.0, examples=11)
    some.end_task(learner.world.tasks[0], [batch[:4], batch[4:]], learner)
    same_ones.end_task(learner.world.tasks[0], subsample([batch[:4], batch[4:]], 10), learner)
    other.end_task(learner.world.tasks[0], [batch], learner)
    assert same(precision(some), precision(same_ones))
    assert not same(precision(some), precision(other))


def test_the_empirical_fisher_uses_the_labels_in_the_data() -> None:
    learner, ewc = digit_learner(), EWC(2.0, fisher="empirical")
    batch = end_task(learner, ewc, 0)
    for p, f in zip(
        precision(ewc), diagonal_fisher(learner, [batch], by_hooks=False).values(), strict=True
    ):
        torch.testing.assert_close(p, f)


def test_the_seed_determines_the_labels_sampled_for_the_fisher() -> None:
    """They are sampled from the model, with a separate generator."""
    learner = digit_learner()
    ewcs = [EWC(1.0, seed=1), EWC(1.0, seed=1), EWC(1.0, seed=2), EWC(1.0, fisher="empirical")]
    states = random_states()
    for ewc in ewcs:
        end_task(learner, ewc, 0)
    assert random_states() == states
    first, repeated = precision(ewcs[0]), precision(ewcs[1])
    other_seed, empirical = precision(ewcs[2]), precision(ewcs[3])
    assert same(first, repeated)
    assert not same(first, other_seed)
    assert not same(first, empirical)
    ewcs[0].end_task(learner.world.tasks[0], [learner.rollout(stream(), [0], 4, seed=0)], learner)
    assert not same(precision(ewcs[0]), [2 * p for p in first])  # new samples at every task's end


def test_ewc_does_not_penalise_the_value_head() -> None:
    learner = control_learner()
    ewc = EWC(10.0)
    world = plant()
    ewc.end_task(world.tasks[0], [learner.rollout(world, [0], 4, seed=0)], learner)
    names = [name for name, _ in learner.module.named_parameters()]
    free = {name for name, p in zip(names, precision(ewc), strict=True) if float(p.max()) == 0.0}
    assert free == {"value.linear.weight", "value.linear.bias"}
    with torch.no_grad():
        for p in learner.module.parameters():
            p.add_(1.0)
            p.grad = torch.zeros_like(p)
    ewc.edit_gradients(None, learner)
    assert {
        name
        for name, p in learner.module.named_parameters()
        if p.grad is not None and float(p.grad.abs().max()) == 0.0
    } == free


def test_a_decay_of_separate_anchors_is_refused_and_a_decay_of_0_is_inactive() -> None:
    message = r"^decay is 0.5, but separate anchors don't decay; use online ones$"
    with pytest.raises(ValueError, match=message):
        EWC(decay=0.5)
    assert EWC(anchors="online", decay=0.5).active
    assert not EWC(anchors="online", decay=0.0).active


def test_ewc_leaves_weights_without_a_gradient_alone() -> None:
    learner, ewc = digit_learner(), EWC(10.0)
    end_task(learner, ewc, 0)
    first, *rest = learner.module.parameters()
    for p in rest:
        p.grad = torch.zeros_like(p)
    ewc.edit_gradients(None, learner)
    assert first.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_are_sampled_on_the_device_of_the_network() -> None:
    learner, ewc = digit_learner(), EWC(1.0)
    learner.module.cuda()
    end_task(learner, ewc, 0)
    assert {p.device.type for p in precision(ewc)} == {"cuda"}
