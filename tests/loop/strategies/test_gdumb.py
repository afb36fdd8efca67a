"""GDumb: it trains from its memory alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from architecture_helpers import task_aware_learner
from attached_helpers import plain_step
from loop_helpers import (
    FlatNet,
    distance,
    gradients,
    perturb,
    same,
    stream,
    update,
    weights,
)
from rehearsal_helpers import (
    CLASSES,
    INPUTS,
    cross_entropies,
    examples,
    rehearsal_learner,
    step,
    stored,
    two_layer_outputs,
)
from strategy_helpers import Named, TaskAgnosticLearner
from torch import Tensor, nn

from everloop.agents import MLP, GrowingMLP, ProgressiveMLP, RunningNorm
from everloop.loop import (
    HAT,
    Categorical,
    GDumb,
    Growth,
    LoRA,
    PackNet,
    Progressive,
    Strategy,
    SupervisedLearner,
    attach,
)


def gdumb_learner(gdumb: GDumb, tasks: Sequence[int] = (0, 1)) -> TaskAgnosticLearner:
    """A learner whose memory has examples of `tasks`."""
    learner = rehearsal_learner([gdumb])
    for task in tasks:
        gdumb.begin_task(Named(task), learner)
        for i in range(3):
            step(learner, examples(6, task, seed=10 * task + i))
    return learner


def test_gdumb_learns_nothing_from_the_stream_with_any_optimizer() -> None:
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        gdumb = GDumb(epochs=2, capacity=12)
        learner = rehearsal_learner()
        learner.optimizer = make(learner.module.parameters(), lr=0.1, weight_decay=0.1)
        learner.attach([gdumb])
        for task in (0, 1):
            start = weights(learner.module)
            gdumb.begin_task(Named(task), learner)
            for i in range(3):
                step(learner, examples(6, task, seed=i))
            assert same(weights(learner.module), start)
            gdumb.end_task(Named(task), [], learner)
            assert not same(weights(learner.module), start)


def test_gdumb_computes_no_gradient_on_the_stream() -> None:
    learner, calls = rehearsal_learner([GDumb(epochs=1, capacity=12)]), list[Tensor]()
    next(learner.module.parameters()).register_hook(calls.append)
    update(learner, examples(6, 0, seed=0))
    assert not calls
    learner.attach([GDumb(epochs=0)])
    update(learner, examples(6, 0, seed=0))
    assert len(calls) == 1


def test_gdumbs_weights_depend_only_on_memory_and_initial_weights() -> None:
    """Not on the weights, gradients and optimizer state before a task's end."""
    ends = []
    for disturbed in (False, True):
        gdumb = GDumb(epochs=3, capacity=12, batch_size=4)
        learner = gdumb_learner(gdumb)
        if disturbed:
            perturb(learner.module, 5, 3.0)
            for p in learner.module.parameters():
                p.grad = torch.full_like(p, 7.0)
            learner.optimizer.step()
        gdumb.end_task(Named(1), [], learner)
        ends.append(weights(learner.module))
    assert same(*ends)


def test_gdumb_trains_by_momentum_sgd_with_a_cosine_rate() -> None:
    """Over shuffled passes: v <- 0.9 v + g + 1e-6 w with |g| <= 10, w <- w - rate_t v.

    rate_t = r / 100 + (r - r / 100) (1 + cos(pi t / steps)) / 2
    """
    gdumb = GDumb(epochs=3, capacity=10, batch_size=4, learning_rate=0.3)
    learner, module = gdumb_learner(gdumb), rehearsal_learner().module
    rng = copy.deepcopy(gdumb.memory.rng)
    t = 0
    steps = 3 * 3
    velocity = [torch.zeros_like(p) for p in module.parameters()]
    kept = stored(gdumb, learner)
    for _ in range(3):
        for rows in np.array_split(rng.permutation(10), 3):
            x, y = kept.obs["x"][0][rows], kept.target[0][rows]  # type: ignore[index]
            grads = gradients(cross_entropies(two_layer_outputs(module, x), y).mean(), module)
            norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
            rate = 0.003 + 0.297 * (1 + math.cos(math.pi * t / steps)) / 2
            for p, v, g in zip(module.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(g * min(1.0, 10.0 / norm) + 1e-6 * p.detach())
                p.data -= rate * v
            t += 1
    gdumb.end_task(Named(1), [], learner)
    assert distance(weights(learner.module), weights(module)) < 1e-9


def test_gdumb_clips_gradients_at_a_norm_of_10() -> None:
    """One step on the whole memory: w <- w - rate (10 g / |g| + 1e-6 w)."""
    torch.manual_seed(0)
    linear = nn.Linear(INPUTS, CLASSES, bias=False).double()
    learner = TaskAgnosticLearner(FlatNet(linear, "x"), Categorical(CLASSES))
    gdumb = GDumb(epochs=1, capacity=6, batch_size=6, learning_rate=0.3)
    gdumb.begin_task(Named(), learner)
    batch = examples(6)
    gdumb.observe(replace(batch, obs={"x": 100 * batch.obs["x"]}), learner)
    w, x = linear.weight.detach().clone(), 100 * batch.obs["x"][0]
    p = torch.softmax(x @ w.T, 1)
    p[torch.arange(6), batch.target[0]] -= 1  # type: ignore[index]
    g = p.T @ x / 6
    assert float(g.norm()) > 20
    gdumb.end_task(Named(), [], learner)
    expected = w - 0.3 * (10 * g / g.norm() + 1e-6 * w)
    torch.testing.assert_close(linear.weight.detach(), expected, rtol=1e-6, atol=1e-9)


class ModeRecorder(nn.Module):
    """Records its modes in forward passes with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.modes = nn.Linear(INPUTS, CLASSES), set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.modes |= {self.training} if torch.is_grad_enabled() else set()
        return self.linear(x)


def test_in_a_foreign_loop_gdumb_trains_in_training_mode() -> None:
    """Otherwise batch norm would keep the statistics of an untrained network."""
    module, batch = ModeRecorder(), examples(12)
    loop = attach([GDumb(epochs=2)], module, torch.optim.SGD(module.parameters(), lr=0.1))
    loop.begin_task(0)
    x, y = batch.obs["x"][0].float(), batch.target[0]  # type: ignore[index]
    loop.observe(x, y)
    loop.end_task([(x, y)])
    assert module.modes == {True}
    assert module.training


def test_gdumb_does_not_update_batch_norm_on_the_stream() -> None:
    torch.manual_seed(0)
    module = FlatNet(
        nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)
        )
    )
    learner, gdumb = SupervisedLearner(module, stream()), GDumb(epochs=1, capacity=20)
    learner.attach([gdumb])
    for task in learner.world.tasks[:2]:
        gdumb.begin_task(task, learner)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        learner.learn([task.id], 64)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        gdumb.end_task(task, [], learner)
        assert not torch.equal(
            module.state_dict()["layers.2.running_mean"], before["layers.2.running_mean"]
        )


class Normalising(FlatNet):
    """Normalises flat images by what training has shown, and has a batch norm."""

    def __init__(self) -> None:
        norm = RunningNorm(64)
        hidden = [nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU()]
        super().__init__(nn.Sequential(nn.Flatten(), norm, *hidden, nn.Linear(8, 10)))
        self.norm = norm

    def update_statistics(self, obs: Mapping[str, Tensor]) -> None:
        self.norm.update(obs["image"].flatten(0, 1).flatten(1) / 255.0)

    def end_first_phase(self) -> None:
        self.norm.frozen.fill_(True)


def test_gdumb_keeps_the_statistics_of_what_the_stream_has_shown() -> None:
    """They are those of plain training, also if they are frozen after the first task."""
    kept = []
    for strategies in ([], [GDumb(epochs=1, capacity=20)]):
        torch.manual_seed(0)
        module = Normalising()
        learner = SupervisedLearner(module, stream())
        learner.attach(strategies)
        for task in learner.world.tasks[:2]:
            for strategy in strategies:
                strategy.begin_task(task, learner)
            learner.learn([task.id], 64)
            for strategy in strategies:
                strategy.end_task(task, [], learner)
        kept.append(list(module.norm.buffers()))
        assert module.norm.frozen
        assert module.norm.count == 64
    assert same(*kept)


@pytest.mark.parametrize("evaluating", [False, True], ids=["training", "evaluation mode"])
def test_gdumb_keeps_a_frozen_batch_norm_frozen(evaluating: bool) -> None:
    """Also if the loop is in evaluation mode when the task ends."""
    torch.manual_seed(0)
    frozen, free = nn.BatchNorm1d(8).eval(), nn.BatchNorm1d(8)
    module = nn.Sequential(nn.Linear(INPUTS, 8), frozen, free, nn.ReLU(), nn.Linear(8, CLASSES))
    optimizer, batch = torch.optim.SGD(module.parameters(), lr=0.1), examples(12)
    loop = attach([GDumb(epochs=2)], module, optimizer)
    x, y = batch.obs["x"][0].float(), batch.target[0]  # type: ignore[index]
    loop.begin_task(0)
    loop.observe(x, y)
    plain_step(module, optimizer, x, y)
    before = [b.clone() for b in frozen.buffers()]
    if evaluating:
        module.eval()
    modes = [part.training for part in module.modules()]
    moving = free.running_mean.clone()  # type: ignore[union-attr]
    loop.end_task([(x, y)])
    assert same(list(frozen.buffers()), before)
    assert not torch.equal(free.running_mean, moving)  # type: ignore[arg-type]
    assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize(
    ("other", "network"),
    [
        *[(kind, MLP) for kind in (LoRA, PackNet, HAT)],
        (Progressive, ProgressiveMLP),
        (Growth, GrowingMLP),
        (lambda: LoRA(adapters="online"), MLP),
    ],
)
def test_gdumb_is_refused_beside_strategies_that_freeze_or_add_weights(
    other: Callable[[], Strategy], network: type[nn.Module]
) -> None:
    companion = other()
    with pytest.raises(
        ValueError,
        match=f"^{companion.name} .* and gdumb resets all weights at each task's end, which can't",
    ):
        task_aware_learner(network((8, 8, 1), (8, 8))).attach([companion, GDumb()])


def test_gdumbs_memory_is_balanced_over_classes() -> None:
    gdumb = GDumb(capacity=10)
    learner = rehearsal_learner([gdumb])
    gdumb.observe(examples(30, labels=[0] * 20 + [1] * 8 + [2] * 2), learner)
    assert torch.bincount(stored(gdumb, learner).target[0]).tolist() == [4, 4, 2]  # type: ignore[index]
