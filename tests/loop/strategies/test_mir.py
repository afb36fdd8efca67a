"""MIR: the stored examples that it replays."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FlatNet,
    control_learner,
    gradients,
    learn_tasks,
    same,
    weights,
)
from rehearsal_helpers import (
    CLASSES,
    INPUTS,
    RATE,
    close,
    cross_entropies,
    examples,
    perturb_weights,
    rehearsal_learner,
    seeds,
    two_layer_outputs,
)
from strategy_helpers import TaskAgnosticLearner
from torch import nn

from everloop.loop import (
    MIR,
    Batch,
    Categorical,
    Gaussian,
    Learner,
)


def next_candidates(mir: MIR, learner: Learner) -> Batch:
    """MIR's next candidates, without advancing its generator."""
    state = mir.memory.rng.bit_generator.state
    rows = mir.memory.draw_distinct(mir.candidates)
    mir.memory.rng.bit_generator.state = state
    return mir.read(rows, learner)


@settings(deadline=None, max_examples=15)
@given(
    strength=st.floats(0.1, 2.0),
    lookahead=st.sampled_from([0.5, 1.0, 4.0]),
    groups=st.booleans(),
    seed=seeds,
)
def test_mir_replays_the_candidates_with_the_largest_rise_in_loss(
    strength: float, lookahead: float, groups: bool, seed: int
) -> None:
    """The rise is that of a virtual step w - lr * lookahead * gradient, with each group's rate."""
    mir = MIR(strength, capacity=20, batch_size=3, candidates=9, lookahead=lookahead, seed=seed)
    learner = rehearsal_learner([mir], groups=groups)
    for i in range(4):
        mir.observe(examples(5, seed=seed + i), learner)
    fresh = examples(4, seed=seed + 9)
    learner.loss(fresh).backward()  # type: ignore[no-untyped-call]
    before, grads = weights(learner.module), [p.grad.clone() for p in learner.module.parameters()]  # type: ignore[union-attr]
    candidates = next_candidates(mir, learner)
    ahead = copy.deepcopy(learner.module)
    for p, g, rate in zip(
        ahead.parameters(), grads, [RATE, RATE, *([0.3] * 2 if groups else [RATE] * 2)], strict=True
    ):
        p.data -= rate * lookahead * g
    x, y = candidates.obs["x"][0], candidates.target[0]  # type: ignore[index]
    losses = cross_entropies(two_layer_outputs(learner.module, x), y)
    rise = (cross_entropies(two_layer_outputs(ahead, x), y) - losses).detach()
    torch.testing.assert_close(mir.interference(candidates, learner), rise, rtol=1e-9, atol=1e-12)
    worst = sorted(range(9), key=lambda i: -float(rise[i]))[:3]
    added = gradients(strength * losses[worst].mean(), learner.module)
    mir.observe(fresh, learner)  # they are drawn before this batch is stored
    mir.edit_gradients(fresh, learner)
    now = [p.grad for p in learner.module.parameters()]
    assert close(now, [g + a for g, a in zip(grads, added, strict=True)])  # type: ignore[arg-type]
    assert same(weights(learner.module), before)


def test_in_control_mir_ranks_by_the_kl_from_the_stored_policy() -> None:
    learner, mir = control_learner(), MIR(capacity=60, batch_size=4, candidates=16)
    learner.attach([mir])
    learn_tasks(learner, [0])
    perturb_weights(learner)
    parameters = list(learner.module.parameters())
    rate = learner.optimizer.param_groups[0]["lr"]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    candidates = next_candidates(mir, learner)
    ahead = copy.deepcopy(learner.module)
    for p, own in zip(ahead.parameters(), parameters, strict=True):
        p.data -= rate * own.grad  # type: ignore[operator]
    then = candidates.target
    rise = [
        Gaussian(2).kl(then, learner.outputs(candidates, net)).sum(0).detach()
        for net in (ahead, learner.module)
    ]  # type: ignore[arg-type]
    torch.testing.assert_close(
        mir.interference(candidates, learner), rise[0] - rise[1], rtol=1e-3, atol=1e-5
    )


def test_mirs_virtual_step_moves_only_weights_in_the_optimizer() -> None:
    """Only the last layer is trained, as in a foreign loop with a frozen backbone."""
    mir = MIR(capacity=20, batch_size=3, candidates=9)
    learner = rehearsal_learner()
    learner.optimizer = torch.optim.SGD(learner.module.layers[-1].parameters(), lr=RATE)  # type: ignore[union-attr, index]
    learner.attach([mir])
    mir.observe(examples(12), learner)
    learner.loss(examples(4, seed=9)).backward()  # type: ignore[no-untyped-call]
    candidates = next_candidates(mir, learner)
    ahead = copy.deepcopy(learner.module)
    for p, own in zip(
        ahead.layers[-1].parameters(), learner.module.layers[-1].parameters(), strict=True
    ):  # type: ignore[union-attr, index]
        p.data -= RATE * own.grad
    x, y = candidates.obs["x"][0], candidates.target[0]  # type: ignore[index]
    rise = cross_entropies(two_layer_outputs(ahead, x), y) - cross_entropies(
        two_layer_outputs(learner.module, x), y
    )
    torch.testing.assert_close(
        mir.interference(candidates, learner), rise.detach(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("memory_size", [7, 12, 200])
def test_mir_replays_no_example_twice(memory_size: int) -> None:
    """Copies of an example would rank alike. A memory smaller than `candidates` is used whole."""
    mir = MIR(capacity=200, batch_size=8, candidates=64)
    learner = rehearsal_learner([mir])
    mir.observe(examples(memory_size), learner)
    learner.loss(examples(4, seed=9)).backward()  # type: ignore[no-untyped-call]
    replayed = list[Batch]()
    own = learner.loss
    learner.loss = lambda batch: (replayed.append(batch), own(batch))[1]
    candidates = next_candidates(mir, learner)
    assert (
        len(candidates) == len(torch.unique(candidates.obs["x"][0], dim=0)) == min(64, memory_size)
    )
    mir.observe(examples(4, seed=9), learner)
    mir.edit_gradients(examples(4, seed=9), learner)
    (batch,) = replayed
    assert len(batch) == len(torch.unique(batch.obs["x"][0], dim=0)) == min(8, memory_size)


def test_mirs_virtual_step_ignores_dropout_and_leaves_no_trace() -> None:
    """Without a gradient no loss rises, and batch norm does not count the virtual pass."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(INPUTS, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, CLASSES),
    ).double()
    learner = TaskAgnosticLearner(FlatNet(layers, "x"), Categorical(CLASSES))
    mir = MIR(capacity=50, batch_size=8, candidates=30)
    learner.attach([mir])
    mir.observe(examples(50), learner)
    for p in learner.module.parameters():
        p.grad = torch.zeros_like(p)
    before, drawn = {name: b.clone() for name, b in layers.named_buffers()}, torch.get_rng_state()
    assert not bool(mir.interference(next_candidates(mir, learner), learner).any())
    assert all(torch.equal(b, before[name]) for name, b in layers.named_buffers())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(part.training for part in layers.modules())
