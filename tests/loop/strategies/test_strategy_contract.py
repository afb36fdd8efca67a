"""What every strategy must keep, whatever it does."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import (
    BUILDERS,
    CONTROL,
    CONTROL_ONLY,
    LABELS_ONLY,
    STREAM,
    TASK_AGNOSTIC_ONLY,
    TASK_AWARE_ONLY,
    active,
    control,
    dqn,
    inactive,
    stream_learner,
    train,
)
from loop_helpers import (
    control_learner,
    plant,
    random_states,
    same,
    weights,
)
from torch import Tensor

from everloop.loop import Training

NEEDS_OTHER_TARGET = {("dqn", "hat"), ("dqn", "lora")}
"""What a target network would not have."""

CASES = [("stream", name) for name in STREAM] + [("control", name) for name in CONTROL]
ALL_CASES = CASES + [
    (kind, name)
    for kind in ("dqn", "sac")
    for name in CONTROL
    if (kind, name) not in NEEDS_OTHER_TARGET
]
STREAMS_AND_CONTROL = pytest.mark.parametrize(
    ("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES]
)
ALL_LEARNERS = pytest.mark.parametrize(
    ("kind", "name"), ALL_CASES, ids=[f"{kind}-{name}" for kind, name in ALL_CASES]
)


@STREAMS_AND_CONTROL
def test_the_empty_setting_is_plain_training_to_the_last_bit(kind: str, name: str) -> None:
    ends = []
    for strategies in ([], [inactive(name)]):
        learner = BUILDERS[kind](name)
        learner.seed(0)
        train(learner, strategies, [0, 1, 2])
        ends.append(weights(learner.module))
    assert same(*ends)


@STREAMS_AND_CONTROL
def test_the_empty_setting_is_left_out_when_it_is_attached(kind: str, name: str) -> None:
    learner, full = BUILDERS[kind](name), active(name)
    learner.attach([inactive(name)])
    assert learner.strategies == []
    learner.attach([full])
    assert learner.strategies == [full]


@ALL_LEARNERS
def test_it_changes_training(kind: str, name: str) -> None:
    """Else the other tests of this file would say nothing."""
    ends = []
    for strategies in ([], [active(name)]):
        learner = BUILDERS[kind](name)
        learner.seed(0)
        train(learner, strategies, [0, 1, 2])
        ends.append(weights(learner.module))
    assert not same(*ends)
    assert all(bool(torch.isfinite(w).all()) for w in ends[1])


@ALL_LEARNERS
def test_it_goes_on_bit_for_bit_from_a_saved_state(kind: str, name: str) -> None:
    """Saved in the midst of a task; what happens to the first strategy afterwards does not reach
    the copy.
    """

    def final(restore: bool) -> list[Tensor]:
        learner, strategy = BUILDERS[kind](name), active(name)
        learner.seed(0)
        train(learner, [strategy], [0, 1])
        strategy.begin_task(learner.world.tasks[2], learner)
        learner.learn([2], 32)
        if restore:
            file = io.BytesIO()
            torch.save(strategy.state_dict(), file)
            file.seek(0)
            strategy = active(name)
            learner.attach([strategy])
            strategy.load_state_dict(torch.load(file, weights_only=False), learner)
        learner.learn([2], 32)
        strategy.end_task(
            learner.world.tasks[2], [learner.rollout(learner.world, [2], 8, seed=2)], learner
        )
        train(learner, [strategy], [3 if kind == "stream" else 0], attach=False)
        return weights(learner.module)

    assert same(final(restore=True), final(restore=False))


@pytest.mark.parametrize("midst", [False, True], ids=["between tasks", "in the midst of a task"])
@pytest.mark.parametrize("name", STREAM)
def test_it_goes_on_bit_for_bit_in_a_network_made_anew(name: str, midst: bool) -> None:
    """As in a process of its own: nothing is left of the first but what was saved."""

    def final(anew: bool) -> list[Tensor]:
        learner, strategy = stream_learner(name), active(name)
        learner.seed(0)
        train(learner, [strategy], [0, 1])
        if midst:
            strategy.begin_task(learner.world.tasks[2], learner)
            learner.learn([2], 64)
        if anew:
            file = io.BytesIO()
            world: Any = learner.world
            parts = (
                strategy.state_dict(),
                learner.module.state_dict(),
                learner.optimizer.state_dict(),
                world.state_dict(),
            )
            torch.save((*parts, learner.steps, torch.get_rng_state()), file)
            learner.learn([2], 64)
            file.seek(0)
            states = torch.load(file, weights_only=False)
            learner, strategy = stream_learner(name), active(name)
            learner.attach([strategy])
            strategy.load_state_dict(states[0], learner)
            learner.module.load_state_dict(states[1])
            learner.optimizer.load_state_dict(states[2])
            learner.world.load_state_dict(states[3])
            learner.steps = states[4]
            torch.set_rng_state(states[5])
        if midst:
            learner.learn([2], 64)
            strategy.end_task(
                learner.world.tasks[2], [learner.rollout(learner.world, [2], 8, seed=2)], learner
            )
        train(learner, [strategy], [3], attach=False)
        batch = learner.rollout(learner.world, [0], 8, seed=0)
        with strategy.view(learner.world.tasks[0], learner), learner.evaluating(), torch.no_grad():
            return [*weights(learner.module), learner.outputs(batch)]

    assert same(final(anew=True), final(anew=False))


@STREAMS_AND_CONTROL
def test_a_saved_state_does_not_change_afterwards(kind: str, name: str) -> None:
    def flat(state: Any) -> list[Any]:
        if isinstance(state, dict):
            return [x for value in state.values() for x in flat(value)]
        if isinstance(state, torch.nn.Module):
            return weights(state)
        if isinstance(state, (list, tuple)):
            return [x for value in state for x in flat(value)]
        return (
            [torch.as_tensor(state).clone()]
            if isinstance(state, (Tensor, np.ndarray))
            else [torch.tensor(hash(state) % 2**31)]
        )

    learner, strategy = BUILDERS[kind](name), active(name)
    train(learner, [strategy], [0, 1])
    state = strategy.state_dict()
    then = flat(state)
    train(learner, [strategy], [2])
    assert len(then) == len(flat(state))
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(then, flat(state), strict=True))


@pytest.mark.parametrize("name", STREAM)
def test_it_runs_in_mixed_precision(name: str) -> None:
    learner = stream_learner(name, Training(precision="bfloat16"))
    assert learner.mixed
    train(learner, [active(name)], [0, 1, 2])
    assert all(
        w.dtype == torch.float32 and bool(torch.isfinite(w).all()) for w in weights(learner.module)
    )


@pytest.mark.parametrize("name", STREAM)
def test_global_generators_are_not_drawn_from(name: str) -> None:
    learner = stream_learner(name)
    states = random_states()
    train(learner, [active(name)], [0, 1])
    assert random_states() == states


@pytest.mark.parametrize("name", sorted(LABELS_ONLY))
def test_what_needs_labels_is_refused_in_control(name: str) -> None:
    with pytest.raises(ValueError, match=r"use |give |needs "):
        control().attach([active(name)])


@pytest.mark.parametrize("name", sorted(CONTROL_ONLY))
def test_what_needs_a_policy_is_refused_in_streams(name: str) -> None:
    with pytest.raises(ValueError, match="on labelled streams use replay or derpp"):
        stream_learner().attach([active(name)])


@pytest.mark.parametrize("name", sorted(TASK_AWARE_ONLY))
def test_what_needs_the_task_is_refused_where_it_is_not_told(name: str) -> None:
    for learner in (stream_learner(), control_learner(world=plant(task_cue=False))):
        with pytest.raises(ValueError, match=r"needs the task ID|no columns"):
            learner.attach([active(name)])


@pytest.mark.parametrize("name", sorted(TASK_AGNOSTIC_ONLY))
def test_what_tells_all_classes_apart_is_refused_where_the_task_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="where the task ID is given, use"):
        stream_learner("packnet").attach([active(name)])


def test_new_weights_are_refused_where_a_target_network_would_not_have_them() -> None:
    with pytest.raises(ValueError, match="lora adds weights"):
        dqn("lora").attach([active("lora")])


def test_a_recurrent_policys_single_steps_are_not_distilled() -> None:
    with pytest.raises(ValueError, match="for a recurrent network use replay"):
        control_learner(recurrent=True).attach([active("lwf")])


@pytest.mark.parametrize("name", sorted(set(CONTROL) - {"hat", "lwf"}))
def test_it_works_in_recurrent_control(name: str) -> None:
    learner = control_learner(recurrent=True, world=plant(task_cue=True))
    learner.seed(0)
    train(learner, [active(name)], [0, 1])
    plain = control_learner(recurrent=True, world=plant(task_cue=True))
    plain.seed(0)
    train(plain, [], [0, 1])
    assert not same(weights(learner.module), weights(plain.module))
    assert all(bool(torch.isfinite(w).all()) for w in weights(learner.module))
