"""A learner that is told its task, and what a strategy promises that keeps each task's outputs."""

from __future__ import annotations

import torch
from loop_helpers import learn_tasks, stream
from torch import Tensor, nn

from everloop.agents import Classifier
from everloop.loop import Batch, Learner, Strategy, SupervisedLearner, Training


def told(backbone: nn.Module, rate: float = 1e-3) -> SupervisedLearner:
    """A head for each of the digits' five tasks, under Adam."""
    torch.manual_seed(0)
    return SupervisedLearner(
        Classifier(backbone, 2, tasks=5),
        stream(label_space="within_task", task_cue=True),
        Training(learning_rate=rate),
    )


def examples(learner: Learner, task: int, seed: int = 5) -> Batch:
    return learner.rollout(stream(label_space="within_task", task_cue=True), [task], 6, seed)


def teach(learner: Learner, task: int, steps: int = 96) -> None:
    world = stream(label_space="within_task", task_cue=True)
    learn_tasks(learner, [task], steps, world)


@torch.no_grad()
def seen(learner: Learner, strategy: Strategy, task: int, batch: Batch) -> Tensor:
    with strategy.view(learner.world.tasks[task], learner), learner.evaluating():
        return learner.outputs(batch)


def four_tasks(learner: Learner, strategy: Strategy) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Outputs of four tasks, each under its view: at its own end, and after the last one; and the
    first one's without its view.
    """
    learner.attach([strategy])
    batches: list[Batch] = []
    then: list[Tensor] = []
    for task in range(4):
        teach(learner, task, 64)
        batches.append(examples(learner, task, seed=77))
        then.append(seen(learner, strategy, task, batches[task]))
    now = [seen(learner, strategy, task, batch) for task, batch in enumerate(batches)]
    return then, now, learner.outputs(batches[0]).detach()
