"""The optimizer's state is reset when the tasks change, and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop_helpers import (
    control_learner,
    distance,
    mlp,
    off_policy_learner,
    same,
    stream,
    weights,
)

from everloop.loop import Learner, NestedOptimizer, SupervisedLearner, Training
from everloop.loop.learners.reset import reset_state


def stream_learner(reset_optimizer: bool = True) -> SupervisedLearner:
    return SupervisedLearner(mlp(), stream(), Training(1e-2, reset_optimizer=reset_optimizer))


LEARNERS: dict[str, Callable[[bool], Any]] = {
    "stream": stream_learner,
    "ppo": lambda reset: control_learner(reset_optimizer=reset),
    "recurrent ppo": lambda reset: control_learner(True, reset_optimizer=reset),
    "dqn": lambda reset: off_policy_learner(reset_optimizer=reset),
    "sac": lambda reset: off_policy_learner(True, reset_optimizer=reset),
}
KINDS = pytest.mark.parametrize("kind", LEARNERS)


def optimizers(learner: Any) -> list[torch.optim.Optimizer]:
    others = learner._optimizers().values() if hasattr(learner, "_optimizers") else ()
    return [learner.optimizer, *others]


def begins_with_state(learner: Learner, tasks: list[int]) -> list[bool]:
    """Begin a phase; return for each optimizer whether it still has a state, and learn it."""
    learner.begin(tasks, 64)
    found = [bool(optimizer.state) for optimizer in optimizers(learner)]
    while learner.advance():
        pass
    return found


@pytest.mark.parametrize("reset", [False, True])
@KINDS
def test_all_optimizers_are_reset_at_other_tasks_only(kind: str, reset: bool) -> None:
    learner = LEARNERS[kind](reset)
    count = 3 if kind == "sac" else 1  # actor, critics and entropy coefficient
    assert begins_with_state(learner, [0]) == [False] * count
    assert begins_with_state(learner, [0]) == [True] * count
    assert begins_with_state(learner, [1]) == [not reset] * count
    assert begins_with_state(learner, [1]) == [True] * count
    assert begins_with_state(learner, [1, 0]) == [not reset] * count


def test_a_reset_optimizer_learns_as_a_new_one_from_the_same_weights() -> None:
    learner, new = stream_learner(), stream_learner()
    learner.learn([0], 64)
    new.module.load_state_dict(learner.module.state_dict())
    new.world.load_state_dict(learner.world.state_dict())
    learner.learn([1], 64)
    new.learn([1], 64)
    assert same(weights(learner.module), weights(new.module))
    carried = stream_learner(reset_optimizer=False)
    carried.learn([0], 64)
    carried.learn([1], 64)
    assert distance(weights(carried.module), weights(new.module)) > 1e-3


@KINDS
def test_a_restored_learner_knows_its_last_tasks(kind: str) -> None:
    learner = LEARNERS[kind](True)
    learner.learn([0], 64)
    for task in (0, 1):
        restored = LEARNERS[kind](True)
        restored.load_state_dict(learner.state_dict())
        assert set(begins_with_state(restored, [task])) == {task == 0}


def test_the_periods_of_a_nested_optimizer_begin_again() -> None:
    module = mlp()
    optimizer = NestedOptimizer(torch.optim.Adam(module.parameters()), {3: module.parameters()})
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(bool(s.any()) for s in optimizer.sums[3])
    reset_state(optimizer)
    assert not optimizer.inner.state
    assert optimizer.steps == 0
    assert not any(bool(s.any()) for s in optimizer.sums[3])


def test_an_optimizer_without_a_state_leaves_a_note() -> None:
    for momentum in (0.0, 0.9):
        module = mlp()
        sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum)
        training = Training(reset_optimizer=True)
        notes = SupervisedLearner(module, stream(), training, sgd).notes
        expected = ["reset_optimizer does nothing: SGD without momentum has no state"]
        assert list(notes) == ([] if momentum else expected)


@pytest.mark.parametrize("reset", [False, True])
def test_the_entropy_coefficient_is_reset_at_other_tasks_only(reset: bool) -> None:
    learner: Any = off_policy_learner(
        True, parameters={"ent_coef": "auto_0.5"}, reset_entropy=reset
    )
    initial = torch.tensor(0.5).log()
    learned = []
    for tasks, fresh in (([0], True), ([0], False), ([1], reset), ([1], False)):
        learner.begin(tasks, 64)
        now = learner.model.log_ent_coef.detach()
        assert bool(torch.isclose(now, initial).all()) == fresh
        assert bool(learner.model.ent_coef_optimizer.state) != fresh
        assert bool(learner.optimizer.state) == bool(learned)  # the actor's is not reset
        while learner.advance():
            pass
        learned.append(learner.model.log_ent_coef.item())
    assert float((torch.tensor(learned) - initial).abs().min()) > 1e-3


def test_a_constant_entropy_coefficient_can_not_be_reset() -> None:
    with pytest.raises(ValueError, match=r"^reset_entropy is True, but ent_coef is 0.1, which"):
        off_policy_learner(True, parameters={"ent_coef": 0.1}, reset_entropy=True)
