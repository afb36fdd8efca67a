"""Evaluation: the return, metric and score of a learner on each task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from everloop.contract import LONGEST_EPISODE, SCORE, Metric, Task, World
from everloop.loop.learners.learner import Learner
from everloop.loop.strategies import Strategy
from everloop.loop.strategies.base import viewing
from everloop.loop.world import check_finite, check_tasks, reset_to_tasks


@torch.no_grad()
def mean_return(learner: Learner, world: World, task: int, seed: int) -> float:
    """Return how well the learner's most probable actions do in `task`.

    In a data set, every example of one pass counts once, for any number of copies of the world. The
    result is from 0 to 1: the metric's `evaluate`, or the mean reward without one. In other worlds
    it is the mean return of the first episode of each copy.

    Args:
        learner: The learner, in evaluation mode.
        world: The world in which to act; it is reset.
        task: Id of the task.
        seed: Seed of the world.

    Raises:
        NotFiniteError: If an observation or a reward is not finite.
        ValueError: If an episode does not end within `LONGEST_EPISODE` steps, or a pass has more
            steps than examples.
    """
    steps = _steps(learner, world, task, seed)
    examples = world.examples(task)
    if examples is None:
        return _of_episodes(islice(steps, LONGEST_EPISODE))
    return _of_a_pass(islice(steps, examples + 1), world.metric(task))


Step = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_], dict[str, Any]]
"""Actions (B, ...), rewards (B,), True where an episode ended (B,), and info."""


def _steps(learner: Learner, world: World, task: int, seed: int) -> Iterator[Step]:
    """Yield steps of `world` under the learner's most probable actions, without end."""
    obs, asked = reset_to_tasks(world, [task], seed)
    state = learner.initial_state(world.num_envs)
    start = np.ones(world.num_envs, dtype=np.bool_)
    while True:
        check_finite(obs, learner.steps)
        action, state = learner.act(obs, state, start)
        obs, rewards, terminated, truncated, info = world.step(action)
        check_tasks(world, info, asked)
        check_finite({}, learner.steps, rewards)
        start = terminated | truncated
        yield action, rewards, start, info


def _of_episodes(steps: Iterator[Step]) -> float:
    """Return the mean return of the first episode of each copy."""
    total, under_way = 0.0, None
    for _, rewards, ended, _ in steps:
        under_way = np.ones(len(rewards), dtype=np.bool_) if under_way is None else under_way
        total += float(rewards[under_way].sum())
        under_way &= ~ended
        if not under_way.any():
            return total / len(rewards)
    raise ValueError(
        f"an episode has not ended after {LONGEST_EPISODE} steps of evaluation; let the world "
        "truncate it, for example with gymnasium.wrappers.TimeLimit"
    )


def _of_a_pass(steps: Iterator[Step], metric: Metric) -> float:
    """Return the metric over the examples of the first pass, each once."""
    labels, guesses, rewards = list[Any](), list[Any](), list[Any]()
    for action, reward, _, info in steps:
        first = info["epoch"] == 0
        if not first.any():
            break
        rewards.append(reward[first])
        if metric.evaluate is not None:
            labels.append(info["label"][first])
            guesses.append(action[first])
    else:
        raise ValueError(
            'a pass over the task has more steps than examples(task); count passes in info["epoch"]'
        )
    if metric.evaluate is not None:
        return float(metric.evaluate(np.concatenate(labels), np.concatenate(guesses)))
    right = sum(float(part.sum()) for part in rewards)
    return right / sum(len(part) for part in rewards)


def returns(
    learner: Learner,
    world: World,
    strategies: Sequence[Strategy],
    seed: int,
    tasks: Collection[int] | None = None,
) -> list[float]:
    """Return the `mean_return` of each task, in the strategies' view of it.

    Args:
        learner: The learner; it is put into evaluation mode meanwhile.
        world: The world in which to act; it is reset.
        strategies: Strategies whose views are opened, the first one outermost.
        seed: Seed of the world, the same for each task.
        tasks: Ids of the tasks to evaluate; the others are nan. All tasks if None.
    """
    return [
        _return(learner, world, strategies, task, seed)
        if tasks is None or task.id in tasks
        else float("nan")
        for task in world.tasks
    ]


def _return(
    learner: Learner, world: World, strategies: Sequence[Strategy], task: Task, seed: int
) -> float:
    """Return the `mean_return` of one task in the strategies' view of it."""
    with viewed(learner, strategies, task):
        return mean_return(learner, world, task.id, seed)


@contextmanager
def viewed(learner: Learner, strategies: Sequence[Strategy], task: Task) -> Iterator[None]:
    """Set up the network as an evaluation of `task` sees it.

    It is in evaluation mode, and in the view of each strategy, the first one outermost.
    """
    with viewing(strategies, task, learner), learner.evaluating():
        yield


def score_metric(world: World) -> Metric:
    """Return the metric of scores in `world`.

    It is the world's own metric if its unit is %. Otherwise it is the score from 0 to 1 if every
    task has a reference, and the world's metric, such as the return, if not.
    """
    metric = world.metric(world.tasks[0].id)
    if metric.unit == "%":
        return metric
    return (
        SCORE if np.isfinite([world.reference(task.id) for task in world.tasks]).all() else metric
    )


def check_references(world: World) -> None:
    """Raise ValueError unless the best return of each task is above the random one, or is nan."""
    for task in world.tasks:
        random, best = world.reference(task.id)
        if best <= random:
            raise ValueError(
                f"reference of task {task.name} is ({random:g}, {best:g}), a random return and the "
                "best one; the best must be higher, or both nan if they are unknown"
            )


def scaled(world: World, returns: Sequence[float]) -> list[float]:
    """Return the score of each task, from its return G and by the world's `score_metric`.

    A metric in % is 100 G. The score is (G - random) / (best - random): 0 for a random agent and 1
    for the best one known. Otherwise it is G itself.

    Args:
        world: The world that gave the returns.
        returns: G of each task of the world.
    """
    metric = score_metric(world)
    if metric.unit == "%":
        return [100.0 * G for G in returns]
    if metric != SCORE:
        return list(returns)
    references = [world.reference(task.id) for task in world.tasks]
    return [
        (G - random) / (best - random)
        for G, (random, best) in zip(returns, references, strict=True)
    ]


def scores(
    learner: Learner, world: World, strategies: Sequence[Strategy], seed: int
) -> list[float]:
    """Return the score of each task: its `returns`, `scaled`."""
    return scaled(world, returns(learner, world, strategies, seed))
