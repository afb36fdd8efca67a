"""How well a learner does each task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from everloop.contract import SCORE, Metric, Task, World
from everloop.loop.learners.learner import Learner
from everloop.loop.strategies import Strategy
from everloop.loop.world import check_finite, play


@torch.no_grad()
def mean_return(learner: Learner, world: World, task: int, seed: int) -> float:
    """How well the most probable actions do in `task`, in the unit of the world's `metric(task)`.

    In a data set every example of one pass counts once, whatever the number of copies: the result
    is a share from 0 to 1, the metric's own `evaluate` or the mean reward. Elsewhere it is the mean
    return of the first episode of each copy.
    """
    played = _steps(learner, world, task, seed)
    return (
        _of_episodes(played)
        if world.examples(task) is None
        else _of_a_pass(played, world.metric(task))
    )


Step = tuple[
    npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_], dict[str, Any]
]  # actions, rewards, ends, info


def _steps(learner: Learner, world: World, task: int, seed: int) -> Iterator[Step]:
    """Steps of `world` under the learner's most probable actions, without end."""
    obs, _ = play(world, [task], seed)
    state = learner.initial_state(world.num_envs)
    start = np.ones(world.num_envs, dtype=np.bool_)
    while True:
        check_finite(obs, learner.steps)
        action, state = learner.act(obs, state, start)
        obs, rewards, terminated, truncated, info = world.step(action)
        check_finite({}, learner.steps, rewards)
        start = terminated | truncated
        yield action, rewards, start, info


def _of_episodes(played: Iterator[Step]) -> float:
    """The mean return of the first episode of each copy."""
    total, under_way = 0.0, None
    for _, rewards, ended, _ in played:
        under_way = np.ones(len(rewards), dtype=np.bool_) if under_way is None else under_way
        total += float(rewards[under_way].sum())
        under_way &= ~ended
        if not under_way.any():
            return total / len(rewards)
    raise AssertionError("a world has no last step")


def _of_a_pass(played: Iterator[Step], metric: Metric) -> float:
    """The metric of the examples that the first pass shows, each once."""
    labels, guesses, rewards = list[Any](), list[Any](), list[Any]()
    for action, reward, _, info in played:
        first = info["epoch"] == 0
        if not first.any():
            break
        rewards.append(reward[first])
        if metric.evaluate is not None:
            labels.append(info["label"][first])
            guesses.append(action[first])
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
    """`mean_return` of each task, in the strategies' view of it; nan of those not among `tasks`, if
    they are given.
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
    with ExitStack() as views:
        for strategy in strategies:
            views.enter_context(strategy.view(task, learner))
        views.enter_context(learner.evaluating())
        return mean_return(learner, world, task.id, seed)


def score_metric(world: World) -> Metric:
    """What scores in `world` are: its own metric if that is a share; else scores where every task
    has a reference; else returns.
    """
    metric = world.metric(world.tasks[0].id)
    if metric.unit == "%":
        return metric
    return (
        SCORE if np.isfinite([world.reference(task.id) for task in world.tasks]).all() else metric
    )


def scaled(world: World, returns: Sequence[float]) -> list[float]:
    """The scores that each task's return G makes, by `score_metric`.

    A share in %; (G - random) / (best - random), 0 for a random agent and 1 for the best known; or
    G itself.
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
    """`returns` of all tasks, `scaled`."""
    return scaled(world, returns(learner, world, strategies, seed))
