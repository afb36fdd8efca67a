"""Properties that every strategy must have."""

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
    end_of_training,
    inactive,
    plain_end,
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

UNSUPPORTED = {("dqn", "hat"), ("dqn", "lora")}
"""Strategies that are refused beside a target network."""

CASES = [("stream", name) for name in STREAM] + [("control", name) for name in CONTROL]
ALL_CASES = CASES + [
    (kind, name) for kind in ("dqn", "sac") for name in CONTROL if (kind, name) not in UNSUPPORTED
]
RECURRENT = [("recurrent control", name) for name in CONTROL if name not in ("hat", "lwf")]
STREAMS_AND_CONTROL = pytest.mark.parametrize(
    ("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES]
)
ALL_LEARNERS = pytest.mark.parametrize(
    ("kind", "name"), ALL_CASES, ids=[f"{kind}-{name}" for kind, name in ALL_CASES]
)


@STREAMS_AND_CONTROL
def test_an_inactive_strategy_is_plain_training_bit_for_bit(kind: str, name: str) -> None:
    assert same(end_of_training(kind, name, [inactive(name)]), plain_end(kind, name))


@STREAMS_AND_CONTROL
def test_an_inactive_strategy_is_not_attached(kind: str, name: str) -> None:
    learner, full = BUILDERS[kind](name), active(name)
    learner.attach([inactive(name)])
    assert learner.strategies == []
    learner.attach([full])
    assert learner.strategies == [full]


@pytest.mark.parametrize(
    ("kind", "name"),
    ALL_CASES + RECURRENT,
    ids=[f"{kind}-{name}" for kind, name in ALL_CASES + RECURRENT],
)
def test_an_active_strategy_changes_training(kind: str, name: str) -> None:
    """Otherwise the other tests of this file would show nothing."""
    end = end_of_training(kind, name, [active(name)])
    assert not same(end, plain_end(kind, name))
    assert all(bool(torch.isfinite(w).all()) for w in end)


@ALL_LEARNERS
def test_a_strategy_continues_bit_for_bit_from_a_saved_state(kind: str, name: str) -> None:
    """The state is saved within a task."""

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


@pytest.mark.parametrize("within", [False, True], ids=["between tasks", "within a task"])
@pytest.mark.parametrize("name", STREAM)
def test_a_strategy_continues_bit_for_bit_in_a_new_network(name: str, within: bool) -> None:
    """As in a new process: only the saved state carries over."""

    def final(restore: bool) -> list[Tensor]:
        learner, strategy = stream_learner(name), active(name)
        learner.seed(0)
        train(learner, [strategy], [0, 1])
        if within:
            strategy.begin_task(learner.world.tasks[2], learner)
            learner.learn([2], 64)
        if restore:
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
        if within:
            learner.learn([2], 64)
            strategy.end_task(
                learner.world.tasks[2], [learner.rollout(learner.world, [2], 8, seed=2)], learner
            )
        train(learner, [strategy], [3], attach=False)
        batch = learner.rollout(learner.world, [0], 8, seed=0)
        with strategy.view(learner.world.tasks[0], learner), learner.evaluating(), torch.no_grad():
            return [*weights(learner.module), learner.outputs(batch)]

    assert same(final(restore=True), final(restore=False))


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
def test_strategies_run_in_mixed_precision(name: str) -> None:
    learner = stream_learner(name, Training(precision="bfloat16"))
    assert learner.mixed
    train(learner, [active(name)], [0, 1, 2])
    assert all(
        w.dtype == torch.float32 and bool(torch.isfinite(w).all()) for w in weights(learner.module)
    )


@pytest.mark.parametrize("name", STREAM)
def test_strategies_leave_global_generators_alone(name: str) -> None:
    learner = stream_learner(name)
    states = random_states()
    train(learner, [active(name)], [0, 1])
    assert random_states() == states


@pytest.mark.parametrize("name", sorted(LABELS_ONLY))
def test_strategies_that_need_labels_are_refused_in_control(name: str) -> None:
    with pytest.raises(ValueError, match=r"use |give |needs "):
        control().attach([active(name)])


@pytest.mark.parametrize("name", sorted(CONTROL_ONLY))
def test_strategies_that_need_a_policy_are_refused_in_streams(name: str) -> None:
    with pytest.raises(ValueError, match="on labelled streams use replay or derpp"):
        stream_learner().attach([active(name)])


@pytest.mark.parametrize("name", sorted(TASK_AWARE_ONLY))
def test_task_aware_strategies_are_refused_without_the_task_id(name: str) -> None:
    for learner in (stream_learner(), control_learner(world=plant(task_cue=False))):
        with pytest.raises(ValueError, match=r"needs the task ID|no columns"):
            learner.attach([active(name)])


@pytest.mark.parametrize("name", sorted(TASK_AGNOSTIC_ONLY))
def test_single_head_strategies_are_refused_with_the_task_id(name: str) -> None:
    with pytest.raises(ValueError, match="where the task ID is given, use"):
        stream_learner("packnet").attach([active(name)])


def test_lora_is_refused_beside_a_target_network() -> None:
    with pytest.raises(ValueError, match="lora adds weights"):
        dqn("lora").attach([active("lora")])


def test_lwf_is_refused_for_a_recurrent_policy() -> None:
    with pytest.raises(ValueError, match="for a recurrent network use replay"):
        control_learner(recurrent=True).attach([active("lwf")])
