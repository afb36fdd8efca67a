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
from loop_helpers import (
    FixedLearner,
    FlatNet,
    control_learner,
    distance,
    gradients,
    perturb,
    weights,
)
from rehearsal_helpers import (
    RATE,
    cross_entropies,
    examples,
    next_draws,
    rehearsal_learner,
    step,
    stored,
    two_layer_outputs,
)
from strategy_helpers import Named
from torch import nn

from everloop.loop import (
    AGEM,
    CLEAR,
    DER,
    ERACE,
    GEM,
    MIR,
    DERPlusPlus,
    GDumb,
    ICaRL,
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
    learner = rehearsal_learner([replay])
    told: list[tuple[float, int, bytes]] = []
    for seed in range(8):
        batch = examples(6, seed=seed, labels=[0, 1, 2, 0, 1, 2])
        p = torch.softmax(two_layer_outputs(learner.module, batch.obs["x"][0]), -1).detach()
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


def test_class_balance_is_kept_over_batches_of_one_class() -> None:
    replay = Replay(capacity=10, memory="class-balanced")
    learner = rehearsal_learner([replay])
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
        expected = [
            p.detach() - RATE * g
            for p, g in zip(before.parameters(), gradients(total, before), strict=True)
        ]
        assert distance(weights(learner.module), expected) < 1e-12
        assert i % 2 or int(drawn.task.max()) == i // 2, "a task's first batch is rehearsed at once"  # type: ignore[union-attr]


def test_the_shares_of_the_classes_are_reported_at_each_tasks_end() -> None:
    replay, heard = Replay(capacity=8), list[dict[str, float]]()
    learner = rehearsal_learner([replay])
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


REHEARSALS = [Replay, DER, DERPlusPlus, MIR, AGEM, GEM, CLEAR]


@pytest.mark.parametrize("kind", REHEARSALS)
@pytest.mark.parametrize("memory", ["class-balanced", "uncertain", "informative"])
def test_memories_that_need_classes_are_refused_where_there_are_none(
    kind: Callable[..., Strategy], memory: str
) -> None:
    line = (
        f"^memory {memory} needs labels, which this learner does not have; use reservoir or ring$"
    )
    with pytest.raises(ValueError, match=line):
        control_learner().attach([kind(memory=memory)])
    if kind is CLEAR:
        return
    tags = FixedLearner(FlatNet(nn.Linear(2, 6), "x"), TokenCategorical(2, 3))
    line = f"^memory {memory} needs one class label for each example; use reservoir or ring$"
    with pytest.raises(ValueError, match=line):
        tags.attach([kind(memory=memory)])


@pytest.mark.parametrize("kind", [ERACE, GDumb, ICaRL])
def test_strategies_of_single_classes_are_refused_for_tags(kind: Callable[..., Strategy]) -> None:
    with pytest.raises(
        ValueError,
        match=r"needs one class label for each example; use (replay or derpp|memory reservoir)$",
    ):
        FixedLearner(FlatNet(nn.Linear(2, 6), "x"), TokenCategorical(2, 3)).attach([kind()])
