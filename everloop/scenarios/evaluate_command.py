"""`everloop evaluate`: measure the trained agent of a run again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from everloop.contract import SCORE, Metric, World
from everloop.loop import Checkpoint, Evaluation, Result
from everloop.loop.denormals import denormals_flushed
from everloop.loop.evaluate import returns, scaled, score_metric
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.rebuild import trained
from everloop.scenarios.run_command import Ready
from everloop.scenarios.stdout import stdout


@dataclass(frozen=True)
class Evaluate:
    """The settings of `everloop evaluate`.

    Args:
        folder: Folder of the run.
        tasks: Names or IDs of the tasks to evaluate. By default those that the run evaluated last.
        episodes: Number of episodes of each task, 1 or more, each in a copy of the world of its
            own. By default as many as in the run. Only in control: of a data set every test example
            is shown once.
        checkpoint: Name of the checkpoint to evaluate, such as step-4096. By default the last one.
        device: Device of the network, such as cpu. By default that of the run. Only for scenarios
            with a setting training.device.
        json: Print a JSON object instead of a table.
    """

    folder: Path
    tasks: list[str] | None = None
    episodes: int | None = None
    checkpoint: str | None = None
    device: str | None = None
    json: bool = False


@dataclass(frozen=True)
class Measured:
    """One task, measured again.

    Args:
        task: Name of the task.
        score: Its score in the unit of `metric`.
        G: Its return, or its share of right answers.
        recorded: The score that the run recorded; nan if it did not evaluate the task.
    """

    task: str
    score: float
    G: float
    recorded: float


def prepare_evaluate(asked: Evaluate) -> Ready:
    """Check what the folder holds, and return what to do.

    Raises:
        ValueError: In one line, if the run can't be evaluated as asked.
    """
    experiment, checkpoint = trained(asked.folder, asked.checkpoint, asked.device)
    recorded = Result.from_dict(checkpoint.state("result")).evaluations[-1]
    all_tasks = experiment.evaluation.tasks
    if asked.tasks is None:
        known = [k for k, score in enumerate(recorded.scores) if not math.isnan(score)]
        ids = known or [task.id for task in all_tasks]
    else:
        ids = [experiment.scenario.task_id(all_tasks, key) for key in asked.tasks]
    world = experiment.evaluation
    if asked.episodes is not None:
        world = _with_copies(experiment, asked.episodes)
    return partial(_evaluate, experiment, checkpoint, world, ids, recorded, asked)


def _with_copies(experiment: Experiment, episodes: int) -> World:
    """Return the world of evaluations in `episodes` copies.

    Raises:
        ValueError: If it is a data set, or there would be no copy.
    """
    if experiment.learner.labelled:
        raise ValueError(
            f"episodes is {episodes}; leave it out, because {experiment.scenario.name} shows every "
            "test example once"
        )
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; it must be 1 or more")
    experiment.evaluation.close()
    return experiment.scenario.make_world("test", episodes, experiment.seed)


def _evaluate(
    experiment: Experiment,
    checkpoint: Checkpoint,
    world: World,
    ids: Sequence[int],
    recorded: Evaluation,
    asked: Evaluate,
) -> int:
    try:
        found = measure(experiment, world, ids, recorded)
        metric = score_metric(world)
    finally:
        for each in (experiment.learner.world, experiment.rollouts, world):
            if each is not None:
                each.close()
    if asked.json:
        print(json.dumps(_as_dict(checkpoint, metric, found), indent=2))
        return 0
    with stdout() as console:
        console.print(_table(metric, found, recorded.step), highlight=False)
        console.print(
            escape(f"{asked.folder} at step {checkpoint.step} ({checkpoint.folder.name})"),
            highlight=False,
            soft_wrap=True,
        )
    return 0


def measure(
    experiment: Experiment, world: World, ids: Sequence[int], recorded: Evaluation
) -> list[Measured]:
    """Measure tasks as the run's own evaluations do, from the same seed.

    Args:
        experiment: The experiment, whose learner has learned what is to be measured.
        world: The world to act in.
        ids: IDs of the tasks.
        recorded: What the run has measured.
    """
    learner = experiment.learner
    with denormals_flushed():
        now = returns(learner, world, learner.strategies, experiment.plan.seed, ids)
    scores = scaled(world, now)
    return [
        Measured(world.tasks[k].name, scores[k], now[k], recorded.scores[k])
        for k in dict.fromkeys(ids)
    ]


def _as_dict(checkpoint: Checkpoint, metric: Metric, found: Sequence[Measured]) -> dict[str, Any]:
    """Return what --json prints. Returns of a data set are shares from 0 to 1."""
    return {
        "checkpoint": checkpoint.folder.name,
        "step": checkpoint.step,
        "metric": metric.name,
        "tasks": {
            one.task: {
                "score": one.score,
                "return": one.G,
                "recorded": None if math.isnan(one.recorded) else one.recorded,
            }
            for one in found
        },
    }


def _table(metric: Metric, found: Sequence[Measured], step: int) -> Table:
    """Return the scores beside those that the run recorded at `step`; with returns if they differ.

    A metric in % and a return are shown once.
    """
    title = f"{metric.name} in {metric.unit}" if metric.unit else metric.name
    table = Table(box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for heading in (title, *(["return"] if metric == SCORE else []), f"recorded at step {step}"):
        table.add_column(heading, justify="right")
    for one in found:
        shown = [f"{one.G:.4g}"] if metric == SCORE else []
        table.add_row(escape(one.task), metric.text(one.score), *shown, metric.text(one.recorded))
    return table
