"""Strategies that store examples: their memories, current examples, and refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from loop_helpers import (
    FixedLearner,
    FlatNet,
    control_learner,
    distance,
    perturb,
    weights,
)
from rehearsal_helpers import (
    CLASSES,
    INPUTS,
    RATE,
    cross_entropies,
    examples,
    next_draws,
    rehearsal_learner,
    step,
    stored,
    two_layer_outputs,
)
from strategy_helpers import Named, TaskAgnosticLearner, after_gradient_step
from torch import nn

from everloop.loop import (
    AGEM,
    CLEAR,
    DER,
    ERACE,
    GEM,
    MIR,
    Categorical,
    DERPlusPlus,
    GDumb,
    ICaRL,
    Replay,
    Strategy,
    TokenCategorical,
)
from everloop.loop.strategies.parts.rehearsal import observed_output


@pytest.mark.parametrize("memory", ["uncertain", "informative"])
def test_scored_memories_keep_the_highest_scoring_examples_of_each_class(
    memory: str,
) -> None:
    """The score is the entropy -sum p log p or -log p_y, with the outputs when the example came."""
    replay = Replay(capacity=9, memory=memory)
    learner = rehearsal_learner([replay])
    scored: list[tuple[float, int, bytes]] = []
    for seed in range(8):
        batch = examples(6, seed=seed, labels=[0, 1, 2, 0, 1, 2])
        p = torch.softmax(two_layer_outputs(learner.module, batch.obs["x"][0]), -1).detach()
        y = batch.target[0]  # type: ignore[index]
        scores = -(p * p.log()).sum(-1) if memory == "uncertain" else -p[torch.arange(6), y].log()
        scored += [
            (float(s), int(label), x.numpy().tobytes())
            for s, label, x in zip(scores, y, batch.obs["x"][0], strict=True)
        ]
        step(learner, batch)
        perturb(learner.module, seed)
    items = replay.memory.read(np.arange(9))
    for label in range(3):
        best = {x for _, _, x in sorted((t for t in scored if t[1] == label), reverse=True)[:3]}
        assert {
            x.tobytes() for x, y in zip(items["obs.x"], items["target"], strict=True) if y == label
        } == best


def test_a_ring_keeps_the_last_examples_of_each_task() -> None:
    replay = Replay(capacity=8, memory="ring", batch_size=50)
    learner = rehearsal_learner([replay])
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


def test_the_memory_stays_balanced_over_batches_of_single_classes() -> None:
    replay = Replay(capacity=10, memory="class-balanced")
    learner = rehearsal_learner([replay])
    for label in (4, 4, 0, 0, 0, 2):
        replay.observe(examples(7, seed=label, labels=[label] * 7), learner)
    labels = stored(replay, learner).target
    assert sorted(torch.bincount(labels[0], minlength=5).tolist()) == [0, 0, 3, 3, 4]  # type: ignore[index]


def test_with_current_replay_samples_the_current_task_without_boundaries() -> None:
    """The update descends the fresh loss plus strength times the loss of a draw from the memory.

    The memory already has the fresh examples.
    """
    replay = Replay(0.7, capacity=12, batch_size=6, current=True)
    learner = rehearsal_learner([replay])
    for i in range(4):
        batch = examples(4, task=i // 2, seed=i)
        before = copy.deepcopy(learner.module)
        twin = copy.deepcopy(replay)
        twin.observe(replace(batch, output=learner.outputs(batch).detach()), learner)
        (drawn,) = next_draws(twin, learner, 6)
        total = cross_entropies(
            two_layer_outputs(before, batch.obs["x"][0]), batch.target[0]
        ).mean()  # type: ignore[index]
        total = (
            total
            + 0.7
            * cross_entropies(two_layer_outputs(before, drawn.obs["x"][0]), drawn.target[0]).mean()
        )  # type: ignore[index]
        step(learner, batch)
        expected = after_gradient_step(before, total, RATE)
        assert distance(weights(learner.module), expected) < 1e-12
        assert i % 2 or int(drawn.task.max()) == i // 2, "a task's first batch is replayed at once"  # type: ignore[union-attr]


def test_class_shares_are_logged_at_each_tasks_end() -> None:
    replay, logged = Replay(capacity=8), list[dict[str, float]]()
    learner = rehearsal_learner([replay])
    learner.on_log = logged.append
    replay.observe(examples(6, labels=[0, 0, 3, 3, 3, 4]), learner)
    assert logged == []
    replay.end_task(Named(), [], learner)
    shares = {
        "memory/Replay/class_0": 1 / 3,
        "memory/Replay/class_3": 1 / 2,
        "memory/Replay/class_4": 1 / 6,
    }
    assert logged == [pytest.approx(shares)]


REHEARSALS = [Replay, DER, DERPlusPlus, MIR, AGEM, GEM, CLEAR]


@pytest.mark.parametrize("kind", REHEARSALS)
@pytest.mark.parametrize("memory", ["class-balanced", "uncertain", "informative"])
def test_memories_that_need_class_labels_are_refused_without_them(
    kind: Callable[..., Strategy], memory: str
) -> None:
    message = (
        f"^memory {memory} needs labels, which this learner does not have; use reservoir or ring$"
    )
    with pytest.raises(ValueError, match=message):
        control_learner().attach([kind(memory=memory)])
    if kind is CLEAR:
        return
    tags = FixedLearner(FlatNet(nn.Linear(2, 6), "x"), TokenCategorical(2, 3))
    message = f"^memory {memory} needs one class label for each example; use reservoir or ring$"
    with pytest.raises(ValueError, match=message):
        tags.attach([kind(memory=memory)])


@pytest.mark.parametrize("kind", [ERACE, GDumb, ICaRL])
def test_strategies_for_single_labels_are_refused_on_tags(
    kind: Callable[..., Strategy],
) -> None:
    with pytest.raises(
        ValueError,
        match=r"needs one class label for each example; use (replay or derpp|memory reservoir)$",
    ):
        FixedLearner(FlatNet(nn.Linear(2, 6), "x"), TokenCategorical(2, 3)).attach([kind()])


def test_each_row_gets_the_example_that_the_memory_chose_for_it() -> None:
    """Also if all examples of a batch are stored, but not in their order."""
    replay = Replay(capacity=5)
    learner, orders = rehearsal_learner([replay]), set[tuple[int, ...]]()
    for seed in range(20):
        batch, twin = examples(2, seed=seed), copy.deepcopy(replay.memory)
        chosen, rows = twin.reserve(2)
        replay.observe(batch, learner)
        kept = replay.memory.read(rows)["obs.x"][:, 0]
        np.testing.assert_array_equal(kept, batch.obs["x"][0].numpy()[chosen])
        orders.add(tuple(chosen.tolist()))
    assert (1, 0) in orders


@pytest.mark.parametrize("count", [1, 256, 257, 600])
def test_in_control_the_targets_of_all_rows_are_renewed(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, renewed = Replay(), list[int]()
    monkeypatch.setattr(replay, "read", lambda rows, model: rows)
    monkeypatch.setattr(replay, "store", lambda rows, read, model: renewed.extend(rows.tolist()))
    replay._store_again(np.arange(count), rehearsal_learner())
    assert renewed == list(range(count))


def test_outputs_of_observed_examples_leave_no_trace() -> None:
    """They are those of training mode, but batch norm does not count them."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES)
    ).double()
    learner, batch = TaskAgnosticLearner(FlatNet(layers, "x"), Categorical(CLASSES)), examples(9)
    before, drawn = [b.clone() for b in layers.buffers()], torch.get_rng_state()
    output = observed_output(batch, learner)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(b, then) for b, then in zip(layers.buffers(), before, strict=True))
    assert not output.requires_grad
    assert torch.equal(output[0], layers(batch.obs["x"][0]))
    given = torch.ones(1, 9, CLASSES, dtype=torch.float64)
    assert observed_output(replace(batch, output=given), learner) is given
