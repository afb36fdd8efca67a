"""Strategies that store examples: what is stored, which of it is rehearsed, and the losses as
written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    control_learner,
    distance,
    same,
    weights,
)
from rehearsal_helpers import (
    CLASSES,
    INPUTS,
    RATE,
    away,
    by_hand,
    close,
    cross_entropies,
    examples,
    foresee,
    gradients,
    learner_of,
    perturb,
    seeds,
    step,
    stored,
    train,
)
from strategy_helpers import Named, Untold
from torch import nn

from everloop.loop import (
    AGEM,
    CLEAR,
    DER,
    ERACE,
    GEM,
    MIR,
    Batch,
    Categorical,
    DERPlusPlus,
    Gaussian,
    GDumb,
    ICaRL,
    Learner,
    Replay,
    Strategy,
    TokenCategorical,
)

# Replay's memories


@pytest.mark.parametrize("memory", ["uncertain", "informative"])
def test_what_is_kept_of_each_class_is_what_the_network_was_least_sure_of_or_had_most_to_learn_from(
    memory: str,
) -> None:
    """Entropy -sum p log p, or -log p_y, of the outputs when the example came: whatever the network
    says later.
    """
    replay = Replay(capacity=9, memory=memory)
    learner = learner_of([replay])
    told: list[tuple[float, int, bytes]] = []
    for seed in range(8):
        batch = examples(6, seed=seed, labels=[0, 1, 2, 0, 1, 2])
        p = torch.softmax(by_hand(learner.module, batch.obs["x"][0]), -1).detach()
        y = batch.target[0]  # type: ignore[index]
        scores = -(p * p.log()).sum(-1) if memory == "uncertain" else -p[torch.arange(6), y].log()
        told += [
            (float(s), int(label), x.numpy().tobytes())
            for s, label, x in zip(scores, y, batch.obs["x"][0], strict=True)
        ]
        step(learner, batch)
        perturb(learner.module, seed)
    items = replay.memory.read(np.arange(9))
    for label in range(3):
        best = {x for _, _, x in sorted((t for t in told if t[1] == label), reverse=True)[:3]}
        assert {
            x.tobytes() for x, y in zip(items["obs.x"], items["target"], strict=True) if y == label
        } == best


def test_a_ring_rehearses_the_last_examples_of_each_task() -> None:
    replay = Replay(capacity=8, memory="ring", batch_size=50)
    learner = learner_of([replay])
    batches = [examples(7, task, seed=task) for task in (3, 1, 3, 2)]
    for batch in batches:
        replay.begin_task(Named(int(batch.task[0])), learner)  # type: ignore[index]
        replay.observe(batch, learner)
        replay.end_task(Named(int(batch.task[0])), [], learner)  # type: ignore[index]
    kept = stored(replay, learner)
    for last in batches[1:]:
        mine = {x.numpy().tobytes() for x in kept.obs["x"][0][kept.task == last.task[0]]}  # type: ignore[index]
        assert 2 <= len(mine) <= 3
        assert mine == {x.numpy().tobytes() for x in last.obs["x"][0][-len(mine) :]}
    assert len(kept) == 8


def test_class_balance_is_kept_over_batches_of_one_class() -> None:
    replay = Replay(capacity=10, memory="class-balanced")
    learner = learner_of([replay])
    for label in (4, 4, 0, 0, 0, 2):
        replay.observe(examples(7, seed=label, labels=[label] * 7), learner)
    labels = stored(replay, learner).target
    assert sorted(torch.bincount(labels[0], minlength=5).tolist()) == [0, 0, 3, 3, 4]  # type: ignore[index]


def test_with_current_the_task_at_hand_is_rehearsed_as_well_and_no_boundary_has_to_be_told() -> (
    None
):
    """The update is along the fresh loss plus strength times that of a draw from everything stored,
    fresh examples included.
    """
    replay = Replay(0.7, capacity=12, batch_size=6, current=True)
    learner = learner_of([replay])
    for i in range(4):
        batch = examples(4, task=i // 2, seed=i)
        before = copy.deepcopy(learner.module)
        twin = copy.deepcopy(replay)
        twin.observe(replace(batch, output=learner.outputs(batch).detach()), learner)
        (drawn,) = foresee(twin, learner, 6)
        total = cross_entropies(by_hand(before, batch.obs["x"][0]), batch.target[0]).mean()  # type: ignore[index]
        total = (
            total
            + 0.7 * cross_entropies(by_hand(before, drawn.obs["x"][0]), drawn.target[0]).mean()
        )  # type: ignore[index]
        step(learner, batch)
        expected = [
            p.detach() - RATE * g
            for p, g in zip(before.parameters(), gradients(total, before), strict=True)
        ]
        assert distance(weights(learner.module), expected) < 1e-12
        assert i % 2 or int(drawn.task.max()) == i // 2, "a task's first batch is rehearsed at once"  # type: ignore[union-attr]


def test_the_shares_of_the_classes_are_reported_at_each_tasks_end() -> None:
    replay, heard = Replay(capacity=8), list[dict[str, float]]()
    learner = learner_of([replay])
    learner.on_log = heard.append
    replay.observe(examples(6, labels=[0, 0, 3, 3, 3, 4]), learner)
    assert heard == []
    replay.end_task(Named(), [], learner)
    shares = {
        "memory/Replay/class_0": 1 / 3,
        "memory/Replay/class_3": 1 / 2,
        "memory/Replay/class_4": 1 / 6,
    }
    assert heard == [pytest.approx(shares)]


# MIR


def proposed(mir: MIR, learner: Learner) -> Batch:
    """The candidates that come next; the same come afterwards."""
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
def test_mir_rehearses_the_candidates_whose_loss_a_step_along_the_fresh_batch_would_raise_most(
    strength: float, lookahead: float, groups: bool, seed: int
) -> None:
    """The step is w - lr * lookahead * gradient, each group of weights at its own rate; it is not
    taken.
    """
    mir = MIR(strength, capacity=20, batch_size=3, candidates=9, lookahead=lookahead, seed=seed)
    learner = learner_of([mir], groups=groups)
    for i in range(4):
        mir.observe(examples(5, seed=seed + i), learner)
    fresh = examples(4, seed=seed + 9)
    learner.loss(fresh).backward()  # type: ignore[no-untyped-call]
    before, grads = weights(learner.module), [p.grad.clone() for p in learner.module.parameters()]  # type: ignore[union-attr]
    candidates = proposed(mir, learner)
    ahead = copy.deepcopy(learner.module)
    for p, g, rate in zip(
        ahead.parameters(), grads, [RATE, RATE, *([0.3] * 2 if groups else [RATE] * 2)], strict=True
    ):
        p.data -= rate * lookahead * g
    x, y = candidates.obs["x"][0], candidates.target[0]  # type: ignore[index]
    losses = cross_entropies(by_hand(learner.module, x), y)
    rise = (cross_entropies(by_hand(ahead, x), y) - losses).detach()
    torch.testing.assert_close(mir.interference(candidates, learner), rise, rtol=1e-9, atol=1e-12)
    worst = sorted(range(9), key=lambda i: -float(rise[i]))[:3]
    added = gradients(strength * losses[worst].mean(), learner.module)
    mir.edit_gradients(fresh, learner)
    now = [p.grad for p in learner.module.parameters()]
    assert close(now, [g + a for g, a in zip(grads, added, strict=True)])  # type: ignore[arg-type]
    assert same(weights(learner.module), before)


def test_mir_in_control_ranks_by_the_divergence_from_the_stored_policy() -> None:
    learner, mir = control_learner(), MIR(capacity=60, batch_size=4, candidates=16)
    learner.attach([mir])
    train(learner, mir, [0])
    away(learner)
    parameters = list(learner.module.parameters())
    rate = learner.optimizer.param_groups[0]["lr"]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    candidates = proposed(mir, learner)
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


def test_mir_lets_weights_stand_still_that_the_optimizer_does_not_have() -> None:
    """Only the last layer is trained, as where a loop of somebody else's keeps a backbone, its
    gradients computed or not.
    """
    mir = MIR(capacity=20, batch_size=3, candidates=9)
    learner = learner_of()
    learner.optimizer = torch.optim.SGD(learner.module.layers[-1].parameters(), lr=RATE)  # type: ignore[union-attr, index]
    learner.attach([mir])
    mir.observe(examples(12), learner)
    learner.loss(examples(4, seed=9)).backward()  # type: ignore[no-untyped-call]
    candidates = proposed(mir, learner)
    ahead = copy.deepcopy(learner.module)
    for p, own in zip(
        ahead.layers[-1].parameters(), learner.module.layers[-1].parameters(), strict=True
    ):  # type: ignore[union-attr, index]
        p.data -= RATE * own.grad
    x, y = candidates.obs["x"][0], candidates.target[0]  # type: ignore[index]
    rise = cross_entropies(by_hand(ahead, x), y) - cross_entropies(by_hand(learner.module, x), y)
    torch.testing.assert_close(
        mir.interference(candidates, learner), rise.detach(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("stored_ones", [7, 12, 200])
def test_mir_rehearses_no_example_twice(stored_ones: int) -> None:
    """Ranked copies of one example would all come together; of a memory that is smaller than the
    candidates each is one.
    """
    mir = MIR(capacity=200, batch_size=8, candidates=64)
    learner = learner_of([mir])
    mir.observe(examples(stored_ones), learner)
    learner.loss(examples(4, seed=9)).backward()  # type: ignore[no-untyped-call]
    rehearsed = list[Batch]()
    own = learner.loss
    learner.loss = lambda batch: (rehearsed.append(batch), own(batch))[1]
    candidates = proposed(mir, learner)
    assert (
        len(candidates) == len(torch.unique(candidates.obs["x"][0], dim=0)) == min(64, stored_ones)
    )
    mir.edit_gradients(examples(4, seed=9), learner)
    (batch,) = rehearsed
    assert len(batch) == len(torch.unique(batch.obs["x"][0], dim=0)) == min(8, stored_ones)


def test_mir_looks_ahead_without_what_is_random_in_training_and_leaves_no_trace() -> None:
    """If the weights stand still nobody is hurt; a batch norm counts no batch that was only looked
    at.
    """
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(INPUTS, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, CLASSES),
    ).double()
    learner, mir = (
        Untold(FlatNet(layers, "x"), Categorical(CLASSES)),
        MIR(capacity=50, batch_size=8, candidates=30),
    )
    learner.attach([mir])
    mir.observe(examples(50), learner)
    for p in learner.module.parameters():
        p.grad = torch.zeros_like(p)
    before, drawn = {name: b.clone() for name, b in layers.named_buffers()}, torch.get_rng_state()
    assert not bool(mir.interference(proposed(mir, learner), learner).any())
    assert all(torch.equal(b, before[name]) for name, b in layers.named_buffers())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(part.training for part in layers.modules())


# what cannot work

MEMORIES_OF = {
    "class-balanced": "ClassBalanced",
    "uncertain": "Uncertain",
    "informative": "Informative",
}
REHEARSALS = [Replay, DER, DERPlusPlus, MIR, AGEM, GEM, CLEAR]


@pytest.mark.parametrize("kind", REHEARSALS)
@pytest.mark.parametrize("memory", MEMORIES_OF)
def test_memories_that_need_classes_are_refused_where_there_are_none(
    kind: Callable[..., Strategy], memory: str
) -> None:
    learner = control_learner()
    name = MEMORIES_OF[memory]
    with pytest.raises(
        ValueError,
        match=(
            f"^memory {name} needs labels, which this learner does not have; use reservoir or ring$"
        ),
    ):
        learner.attach([kind(memory=memory)])
    if kind is CLEAR:
        return
    tags = FixedLearner(FlatNet(nn.Linear(2, 6), "x"), TokenCategorical(2, 3))
    with pytest.raises(
        ValueError, match=f"^memory {name} needs one class for each example; use reservoir or ring$"
    ):
        tags.attach([kind(memory=memory)])


@pytest.mark.parametrize("kind", [ERACE, GDumb, ICaRL])
def test_strategies_of_single_classes_are_refused_for_tags(kind: Callable[..., Strategy]) -> None:
    with pytest.raises(
        ValueError,
        match=r"needs one class label for each example; use (replay or derpp|memory reservoir)$",
    ):
        FixedLearner(FlatNet(nn.Linear(2, 6), "x"), TokenCategorical(2, 3)).attach([kind()])
