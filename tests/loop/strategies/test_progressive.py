"""Progressive networks: columns of returning tasks and of phases."""

from __future__ import annotations

import torch
from architecture_helpers import examples, learn_task, task_aware_learner, view_outputs
from loop_helpers import stream

from everloop.agents import ProgressiveMLP
from everloop.loop import (
    Progressive,
)
from everloop.loop.plan import Plan
from everloop.loop.run import Run


def test_a_returning_task_gets_a_new_column_and_leaves_others_unchanged() -> None:
    learner, progressive = task_aware_learner(ProgressiveMLP((8, 8, 1), (8, 8))), Progressive()
    learner.attach([progressive])
    for task in (0, 1):
        learn_task(learner, task)
    batches = [examples(learner, task) for task in (0, 1)]
    then = [view_outputs(learner, progressive, task, batch) for task, batch in enumerate(batches)]
    learn_task(learner, 0)
    now = [view_outputs(learner, progressive, task, batch) for task, batch in enumerate(batches)]
    assert progressive.tasks.keys == {0: 2, 1: 1}
    assert torch.equal(now[1], then[1])
    assert not torch.equal(now[0], then[0])


def test_tasks_of_one_phase_share_a_column() -> None:
    learner, progressive = task_aware_learner(ProgressiveMLP((8, 8, 1), (8, 8))), Progressive()
    world = stream(label_space="within_task", task_cue=True)
    Run(learner, Plan([[0, 1], [2, 3]], [64, 64], 10**9), world, [progressive]).go()
    assert progressive.tasks.keys == {0: 0, 1: 0, 2: 1, 3: 1}
