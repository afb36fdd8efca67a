"""Reptile and MAML follow their update rules and run once, at the start of a run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from loop_helpers import distance, mlp, same, stream, weights
from torch import Tensor

from everloop.agents import Agent
from everloop.loop import MAML, Plan, Pretraining, Reptile, Run, SupervisedLearner


def small_learner() -> SupervisedLearner:
    return SupervisedLearner(mlp(hidden=12), stream())


@pytest.mark.parametrize("batches", [1, 2])
def test_reptile_interpolates_between_old_and_adapted_weights(batches: int) -> None:
    """The adapted weights come from one SGD step on each batch of the chosen task."""
    learner = small_learner()
    reptile = Reptile(
        inner_lr=0.3,
        outer_lr=0.4,
        adaptation_steps=3,
        iterations=1,
        batches=batches,
        tasks=[2],
        seed=5,
    )
    before = weights(learner.module)
    reptile.run(learner)
    after = weights(learner.module)
    rng = np.random.default_rng(5)
    rng.choice([2])
    shown = learner.rollout(stream(), [2], 3 * batches, int(rng.integers(2**31)))
    assert shown.target is not None
    assert set(shown.target.flatten().tolist()) == {4, 5}
    twin = small_learner()
    sgd = torch.optim.SGD(twin.module.parameters(), lr=0.3)
    for batch in shown.split(8 * batches):
        sgd.zero_grad()
        twin.loss(batch).backward()  # type: ignore[no-untyped-call]
        sgd.step()
    expected = [w + 0.4 * (v - w) for w, v in zip(before, weights(twin.module), strict=True)]
    assert distance(after, expected) < 1e-12


def test_maml_differentiates_through_its_inner_steps() -> None:
    """Central differences of single weights give the same gradient."""
    learner = small_learner()
    maml = MAML(inner_lr=0.5, adaptation_steps=2)
    batches = [learner.rollout(stream(), [1], 2, seed) for seed in range(3)]
    gradient = maml.gradient(learner, [partial(learner.loss, batch) for batch in batches])

    def adapted_loss(shift: float, layer: int, at: tuple[int, ...]) -> float:
        twin = small_learner()
        with torch.no_grad():
            list(twin.module.parameters())[layer][at] += shift
        sgd = torch.optim.SGD(twin.module.parameters(), lr=0.5)
        for batch in batches[:2]:
            sgd.zero_grad()
            twin.loss(batch).backward()  # type: ignore[no-untyped-call]
            sgd.step()
        return float(twin.loss(batches[2]).detach())

    for layer, at in ((0, (3, 20)), (0, (7, 44)), (1, (5,)), (2, (2, 6)), (3, (3,))):
        slope = (adapted_loss(1e-5, layer, at) - adapted_loss(-1e-5, layer, at)) / 2e-5
        g = gradient[layer]
        assert g is not None
        assert float(g[at]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_the_outer_step_of_maml_is_a_step_of_adam() -> None:
    """The first step of Adam is outer_lr times the sign of the gradient."""
    learner, twin = small_learner(), small_learner()
    maml = MAML(outer_lr=0.01, iterations=1, tasks=[3], seed=4)
    before = weights(learner.module)
    maml.run(learner)
    rng = np.random.default_rng(4)
    rng.choice([3])
    shown = twin.rollout(stream(), [3], 6, int(rng.integers(2**31)))
    gradient = maml.gradient(twin, [partial(twin.loss, batch) for batch in shown.split(8)])
    for w, now, g in zip(before, weights(learner.module), gradient, strict=True):
        assert g is not None
        torch.testing.assert_close(now, w - 0.01 * g / (g.abs() + 1e-8))
    assert all(p.grad is None for p in learner.module.parameters())


@pytest.mark.parametrize(("method", "outer_lr"), [(Reptile, 0.5), (MAML, 0.01)])
def test_pretrained_weights_adapt_faster_than_random_ones(
    method: type[Reptile] | type[MAML], outer_lr: float
) -> None:
    def loss_after_one_step(learner: SupervisedLearner) -> float:
        total = 0.0
        for task in range(5):
            batch, other = (learner.rollout(stream(), [task], 4, seed) for seed in (100, 200))
            w = MAML(inner_lr=0.5).adapted(
                learner, [partial(learner.loss, batch)], create_graph=False
            )
            total += float(learner.loss(other, w).detach())
        return total / 5

    plain, trained = small_learner(), small_learner()
    method(range(5), inner_lr=0.5, outer_lr=outer_lr, adaptation_steps=1, iterations=60).run(
        trained
    )
    assert loss_after_one_step(trained) < 0.8 * loss_after_one_step(plain)


def test_a_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^reptile.tasks contains 7; choose from 0, 1, 2, 3, 4$"):
        run_with(Reptile(tasks=[1, 7]))


def test_meta_training_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^maml.tasks is empty; give .* from 0 to 4$"):
        run_with(MAML())
    run_with(MAML(iterations=0))  # plain training


@pytest.mark.parametrize(("method", "losses"), [(Reptile, 2), (MAML, 3)])
def test_meta_training_counts_in_the_result(method: type[Pretraining], losses: int) -> None:
    """In each of 3 iterations every loss is the mean over 2 batches of 8 examples."""
    meta = method([2], adaptation_steps=2, iterations=3, batches=2)
    result = run_with(meta).go()
    assert result.steps == 3 * losses * 2 * 8 + 128
    assert result.presentations == result.steps
    assert result.updates == 3 * losses + 16
    assert f"takes {result.steps - 128} steps on tasks 2 " in meta.note(stream())


def test_meta_training_does_not_use_the_global_generator() -> None:
    learner, state = small_learner(), torch.get_rng_state()
    Reptile([0], iterations=2).run(learner)
    assert torch.equal(torch.get_rng_state(), state)


def run_with(pretraining: Pretraining | None, learner: SupervisedLearner | None = None) -> Run:
    plan = Plan([[0], [1]], [64, 64], 10**9)
    return Run(learner or small_learner(), plan, stream(), pretraining=pretraining)


@pytest.mark.parametrize("method", [Reptile, MAML])
def test_a_run_starts_with_one_pretraining(method: type[Pretraining]) -> None:
    run = run_with(method([2, 3], iterations=3, seed=1))
    run.go()
    learner = small_learner()
    method([2, 3], iterations=3, seed=1).run(learner)
    assert not same(weights(learner.module), weights(small_learner().module))
    by_hand = run_with(None, learner)
    by_hand.go()
    assert same(weights(run.learner.module), weights(by_hand.learner.module))


def test_a_run_restored_within_a_task_is_not_pretrained_again() -> None:
    first, second = (run_with(Reptile([2], iterations=3, seed=1)) for _ in range(2))
    first.begin()
    for _ in range(3):
        first.advance()
    second.load_state_dict(first.state_dict())
    for run in (first, second):
        run.go()
    assert same(*(weights(run.learner.module) for run in (first, second)))


def test_pretraining_without_labels_is_refused() -> None:
    learner = small_learner()
    learner.labelled = False
    with pytest.raises(ValueError, match=r"^maml needs labelled examples; use it with a stream$"):
        MAML().check(learner)


def test_maml_differentiates_twice_through_attention() -> None:
    """A finite difference along the gradient of an agent gives its squared norm."""
    world: Any = stream()

    def make_learner() -> SupervisedLearner:
        torch.manual_seed(0)
        network = Agent(
            world.single_observation_space, 10, recurrent=False, token_size=8, attention_heads=2
        )
        return SupervisedLearner(network, world)

    maml = MAML(inner_lr=0.1, adaptation_steps=2)
    learner = make_learner()
    batches = [learner.rollout(stream(), [0], 1, seed) for seed in range(3)]

    def loss_at(shift: list[Tensor], size: float) -> float:
        twin = make_learner()
        with torch.no_grad():
            for p, s in zip(twin.module.parameters(), shift, strict=True):
                p.add_(s, alpha=size)
        adapted = maml.adapted(
            twin, [partial(twin.loss, batch) for batch in batches[:2]], create_graph=False
        )
        return float(twin.loss(batches[2], adapted).detach())

    found = maml.gradient(learner, [partial(learner.loss, batch) for batch in batches])
    gradient = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(learner.module.parameters(), found, strict=True)
    ]
    square = float(sum((g**2).sum() for g in gradient))
    size = 1e-3 / square**0.5
    measured = (loss_at(gradient, size) - loss_at(gradient, -size)) / (2 * size)
    assert measured == pytest.approx(square, rel=1e-2)
