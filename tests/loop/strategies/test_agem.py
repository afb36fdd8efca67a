"""A-GEM: its projection and its reference gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projection_helpers import (
    CLASSES,
    INPUTS,
    close,
    cross_entropy_gradient,
    give_gradient,
    gradient_of,
    learner_with_memory,
    next_task_draws,
    seeds,
)
from strategy_helpers import Named

from everloop.loop import AGEM


@settings(deadline=None, max_examples=40)
@given(seed=seeds, strength=st.sampled_from([1.0, 0.3]))
def test_agem_removes_only_the_component_against_past_tasks(seed: int, strength: float) -> None:
    """g~ = g - strength (g . r) / (r . r) r if g . r < 0, else g bit for bit."""
    agem = AGEM(strength, capacity=30, batch_size=5, seed=seed)
    learner = learner_with_memory(agem, [0, 1], current=2)
    (drawn,) = next_task_draws(agem, learner, [[0, 1]])
    g, r = give_gradient(learner, seed), cross_entropy_gradient(learner, drawn)
    learner.strategies[0].edit_gradients(None, learner)
    edited = gradient_of(learner)
    if g @ r >= 0:
        assert (edited == g).all()
    else:
        close(edited, g - strength * (g @ r) / (r @ r) * r)
        assert edited @ r == pytest.approx((1 - strength) * (g @ r), abs=1e-9)


def test_agems_reference_gradient_is_of_past_tasks_only() -> None:
    agem = AGEM(capacity=30, batch_size=200)
    learner = learner_with_memory(agem, [0, 3], current=2)
    agem.begin_task(Named(3), learner)  # task 3 returns
    (drawn,) = next_task_draws(agem, learner, [[0]])
    r = cross_entropy_gradient(learner, drawn)
    for p, part in zip(learner.module.parameters(), np.split(-r, [INPUTS * CLASSES]), strict=True):
        p.grad = torch.from_numpy(part).view_as(p).clone()  # opposite to the reference
    agem.edit_gradients(None, learner)
    assert np.abs(gradient_of(learner)).max() < 1e-12 * np.abs(r).max() + 1e-15
