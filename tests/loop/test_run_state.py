"""A restored run continues bit for bit, and a rollback restores the learner."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from contract_helpers import STREAM, active, stream_learner
from loop_helpers import stream
from run_helpers import LogRecorder
from run_state_helpers import SETTINGS, ewc_and_replay, final_state, flat, make_run
from torch import Tensor

from everloop.loop import (
    EWC,
    STRATEGIES,
    Divergence,
    LoRA,
    LwF,
    Plan,
    Run,
    Strategy,
)


def run_with_divergence(kind: str, seed: int) -> tuple[Run, LogRecorder]:
    """A run with Divergence, and a recorder of what it logs."""
    run, recorder = make_run(kind, seed, []), LogRecorder("divergence/")
    run.callbacks = [Divergence(), recorder]
    return run, recorder


@pytest.mark.parametrize("kind", ["plain", "recurrent ppo", "dqn"])
def test_a_restored_run_logs_the_same_divergence_bit_for_bit(kind: str) -> None:
    first, expected = run_with_divergence(kind, 0)
    first.begin()
    while first.phase == 0 or first.steps < 112:
        first.advance()
    state, before = first.state_dict(), len(expected.scalars)
    first.go()
    second, found = run_with_divergence(kind, 3)
    second.load_state_dict(state)
    second.go()
    assert len(found.scalars) > 2
    assert found.scalars == expected.scalars[before:]


def test_the_state_of_divergence_is_a_copy_of_plain_data() -> None:
    run, _ = run_with_divergence("plain", 0)
    run.begin()
    while run.phase == 0:
        run.advance()
    state = run.state_dict()["callbacks"]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert list(loaded) == ["Divergence"]
    assert flat(loaded) == flat(state)
    saved = flat(state)
    run.go()
    assert flat(state) == saved


def test_the_state_of_a_run_with_other_callbacks_is_refused() -> None:
    run, _ = run_with_divergence("plain", 0)
    other = make_run("plain", 0, [])
    run.begin()
    run.advance()
    before = flat(other.snapshot())
    with pytest.raises(
        ValueError, match="the state belongs to the callbacks Divergence; here are none"
    ):
        other.load_state_dict(run.state_dict())
    assert flat(other.snapshot()) == before


@pytest.mark.parametrize("name", ["lora", "growth", "hat", "icarl"])
def test_divergence_resumes_with_strategies_that_change_the_network(name: str) -> None:
    """The anchor of the first task is from before weights were added, or from a view."""
    world: dict[str, Any] = (
        {"label_space": "within_task", "task_cue": True} if STRATEGIES[name].traits.task_id else {}
    )

    def run() -> tuple[Run, LogRecorder]:
        recorder = LogRecorder("divergence/")
        run = Run(
            stream_learner(name),
            Plan([[0], [1], [2]], [48] * 3, eval_every=16),
            stream(16, split="test", **world),
            [active(name)],
            [Divergence(), recorder],
        )
        return run, recorder

    first, of_first = run()
    first.begin()
    while first.steps < 72:
        first.advance()
    state, before = first.state_dict(), len(of_first.scalars)
    first.go()
    second, of_second = run()
    second.load_state_dict(state)
    second.go()
    assert of_second.scalars == of_first.scalars[before:]
    assert of_second.scalars


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_restored_run_continues_bit_for_bit(kind: str) -> None:
    """One state is saved within a task, and one between two tasks.

    The restored run is built with other seeds of network, world and generators.
    """
    first = make_run(kind, 0, ewc_and_replay())
    first.begin()
    states = []
    while not first.done:
        first.advance()
        if first.phase == 1 and len(states) < 2:
            states.append(first.state_dict())
    assert states[0]["phase_end"] is None, "not between two tasks"
    assert states[1]["phase_end"] is not None, "not within a task"
    for state in states:
        second = make_run(kind, 3, ewc_and_replay(seed=7))
        torch.manual_seed(99)
        second.load_state_dict(state)
        second.go()
        assert final_state(second) == final_state(first)


@pytest.mark.parametrize("name", STREAM)
def test_a_restored_run_with_any_strategy_continues_bit_for_bit(name: str) -> None:
    def run(seed: int) -> Run:
        learner = stream_learner(name)
        task_aware = STRATEGIES[name].traits.task_id
        world = {"label_space": "within_task", "task_cue": True} if task_aware else {}
        plan = Plan([[0], [1], [2]], [48] * 3, eval_every=1000, seed=5)
        learner.seed(seed)
        return Run(learner, plan, stream(16, split="test", **world), [active(name)])

    first = run(0)
    first.begin()
    while first.steps < 72:
        first.advance()
    state = first.state_dict()
    first.go()
    second = run(1)
    second.load_state_dict(state)
    second.go()
    assert final_state(second) == final_state(first)


@pytest.mark.parametrize("kind", ["plain", "cosine", "recurrent ppo", "sac"])
def test_a_rollback_restores_the_learner_but_not_the_world(kind: str) -> None:
    run = make_run(kind, 0, ewc_and_replay())
    run.begin()
    while run.phase == 0 or run.steps < 112:
        run.advance()
    snapshot = run.snapshot()
    saved, steps = flat(snapshot), run.steps
    for _ in range(2):
        run.advance()
    assert flat(run.snapshot()) != saved
    run.rollback(snapshot)
    assert flat(run.snapshot()) == saved == flat(snapshot)
    assert run.steps > steps
    run.advance()
    assert flat(run.snapshot()) != saved == flat(snapshot)


def test_the_state_of_another_network_or_strategy_is_refused() -> None:
    run = make_run("plain", 0, ewc_and_replay())
    other = make_run("plain", 0, [EWC()])
    third = make_run("plain", 0, [EWC()])
    run.begin()
    third.begin()
    before = flat(other.snapshot())
    with pytest.raises(
        ValueError,
        match="the state belongs to the strategies ewc, replay; attach them instead of ewc",
    ):
        other.load_state_dict(run.state_dict())
    state = third.state_dict()
    weights: dict[str, Tensor] = state["learner"]["learned"]["module"]
    weights["another"] = weights.pop(next(iter(weights)))
    with pytest.raises(ValueError, match="the state belongs to another network"):
        other.load_state_dict(state)
    assert flat(other.snapshot()) == before


def test_a_teacher_from_a_smaller_network_is_refused() -> None:
    learner = stream_learner("lora")
    strategies: list[Strategy] = [LoRA(rank=2), LwF()]
    learner.attach(strategies)
    for strategy in strategies:
        strategy.begin_task(learner.world.tasks[0], learner)
        strategy.end_task(learner.world.tasks[0], [], learner)
    with pytest.raises(
        ValueError, match="a network copied before LoRA added weights can't be restored"
    ):
        learner.load_learned(learner.learned())
