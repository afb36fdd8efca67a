"""ER-ACE: the classes in the loss of the fresh batch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    digit_learner,
    distance,
    learn_tasks,
    weights,
)
from rehearsal_helpers import (
    CLASSES,
    RATE,
    cross_entropies,
    examples,
    next_draws,
    rehearsal_learner,
    step,
    two_layer_outputs,
)
from strategy_helpers import after_gradient_step

from everloop.loop import ERACE, Forward


@settings(deadline=None, max_examples=30)
@given(
    sequence=st.lists(
        st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    strength=st.floats(0.1, 2.0),
)
def test_er_aces_fresh_loss_is_over_its_own_and_unseen_classes(
    sequence: list[list[int]], strength: float
) -> None:
    """The stored loss is over all classes; in the first batch all classes are unseen."""
    ace = ERACE(strength, capacity=20, batch_size=4)
    learner = rehearsal_learner([ace])
    known: set[int] = set()
    for i, labels in enumerate(sequence):
        batch, before = examples(len(labels), seed=i, labels=labels), copy.deepcopy(learner.module)
        allowed = sorted(set(labels) | (set(range(CLASSES)) - known))
        z = two_layer_outputs(before, batch.obs["x"][0])
        fresh = (
            z[:, allowed].exp().sum(-1).log() - z[torch.arange(len(labels)), torch.tensor(labels)]
        ).mean()
        twin = copy.deepcopy(ace)
        twin.observe(batch, learner)
        (drawn,) = next_draws(twin, learner, 4)
        total = (
            fresh
            + strength
            * cross_entropies(two_layer_outputs(before, drawn.obs["x"][0]), drawn.target[0]).mean()
        )  # type: ignore[index]
        step(learner, batch)
        expected = after_gradient_step(before, total, RATE)
        assert distance(weights(learner.module), expected) < 1e-9
        known |= set(labels)


def test_er_ace_does_not_change_the_loss_of_the_first_batch() -> None:
    ace, batch = ERACE(), examples(3, labels=[0, 1, 0])
    learner = rehearsal_learner([ace])
    fresh = Forward(batch, learner.forward(batch))
    for _ in range(2):  # the second batch has all classes seen so far
        assert torch.equal(ace.loss(fresh, None, learner), learner.loss(batch))  # type: ignore[arg-type]


@pytest.mark.parametrize("balanced", [False, True])
def test_in_a_stream_er_ace_leaves_old_classes_biases_alone(balanced: bool) -> None:
    """Fresh examples give them no gradient, with the plain and the balanced softmax."""
    learner, ace = digit_learner(balanced=balanced), ERACE(1e-9, capacity=200)
    learner.attach([ace])
    learn_tasks(learner, [0])
    before = copy.deepcopy(learner.module.layers[-1].bias.detach())  # type: ignore[union-attr, index]
    learn_tasks(learner, [1])
    moved = (learner.module.layers[-1].bias.detach() - before).abs()  # type: ignore[union-attr, index]
    assert float(moved[:2].max()) < 1e-7
    assert float(moved[2:4].min()) > 1e-5
    assert balanced or float(moved[4:].min()) > 1e-5, "unseen classes are in the fresh loss"
