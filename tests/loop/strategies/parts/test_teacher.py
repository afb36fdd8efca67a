"""A teacher is a copy of the network as it was, also after it was saved and loaded."""

from __future__ import annotations

import torch
from loop_helpers import vector_batch
from strategy_helpers import make_learner, move_weights, two_layers

from everloop.loop.strategies.parts.teacher import Teacher


def test_a_teacher_keeps_its_outputs_when_the_network_learns_or_a_state_is_loaded() -> None:
    learner, teacher, batch = make_learner(two_layers()), Teacher(), vector_batch(6, 4, 3)
    then = learner.outputs(batch).detach()
    teacher.copy(learner)
    state = teacher.state_dict()
    move_weights(learner, 1)
    assert torch.equal(learner.outputs(batch, teacher.module).detach(), then)
    loaded = Teacher()
    loaded.load_state_dict(state)
    loaded.restore(learner)
    assert torch.equal(learner.outputs(batch, loaded.module).detach(), then)
    for p in teacher.module.parameters():  # type: ignore[union-attr]
        p.data.zero_()
    assert all(bool(value.any()) for value in state.values())
