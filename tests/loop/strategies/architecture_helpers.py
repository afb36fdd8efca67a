"""A task-aware learner, and outputs of old tasks, for strategies that preserve them."""

from __future__ import annotations

import pytest
import torch
from loop_helpers import learn_tasks, same, stream, weights
from torch import Tensor, nn

from everloop.agents import Classifier
from everloop.loop import Batch, Learner, Strategy, SupervisedLearner, Training


def task_aware_learner(backbone: nn.Module, rate: float = 1e-3) -> SupervisedLearner:
    """One head for each of the five digit tasks, trained by Adam."""
    torch.manual_seed(0)
    return SupervisedLearner(
        Classifier(backbone, 2, tasks=5),
        stream(label_space="within_task", task_cue=True),
        Training(learning_rate=rate),
    )


def examples(learner: Learner, task: int, seed: int = 5) -> Batch:
    return learner.rollout(stream(label_space="within_task", task_cue=True), [task], 6, seed)


def learn_task(learner: Learner, task: int, steps: int = 96) -> None:
    world = stream(label_space="within_task", task_cue=True)
    learn_tasks(learner, [task], steps, world)


@torch.no_grad()
def view_outputs(learner: Learner, strategy: Strategy, task: int, batch: Batch) -> Tensor:
    with strategy.view(learner.world.tasks[task], learner), learner.evaluating():
        return learner.outputs(batch)


def learn_four_tasks(
    learner: Learner, strategy: Strategy
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Learn four tasks.

    Returns the outputs of each task in its view, at its own end and after the last task, and the
    outputs of the first task without its view, after the last task.
    """
    learner.attach([strategy])
    batches: list[Batch] = []
    then: list[Tensor] = []
    for task in range(4):
        learn_task(learner, task, 64)
        batches.append(examples(learner, task, seed=77))
        then.append(view_outputs(learner, strategy, task, batches[task]))
    now = [view_outputs(learner, strategy, task, batch) for task, batch in enumerate(batches)]
    return then, now, learner.outputs(batches[0]).detach()


def check_view_leaves_no_trace(learner: Learner, strategy: Strategy) -> None:
    """Check that an error inside the first task's view leaves the network as it was."""
    before = weights(learner.module)
    state = {name: b.detach().clone() for name, b in learner.module.named_buffers()}
    trained = [p.requires_grad for p in learner.module.parameters()]
    batch = examples(learner, 0)
    outputs = view_outputs(learner, Strategy(), 1, batch)
    with pytest.raises(KeyError), strategy.view(learner.world.tasks[0], learner):
        raise KeyError
    assert same(before, weights(learner.module))
    assert all(torch.equal(b, state[name]) for name, b in learner.module.named_buffers())
    assert [p.requires_grad for p in learner.module.parameters()] == trained
    assert torch.equal(view_outputs(learner, Strategy(), 1, batch), outputs)
