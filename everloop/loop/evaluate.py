"""How well a learner does each task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from everloop.contract import RETURN, SCORE, Metric
from everloop.loop.learner import Learner
from everloop.loop.strategies import Strategy
from everloop.loop.world import Task, World, check_finite, play


def metric_of(world: World) -> Metric:
    """The metric that `world`, or the world inside its wrappers, declares; the return where none does."""
    layer: Any = world
    while layer is not None:
        if isinstance(metric := getattr(layer, "metric", None), Metric):
            return metric
        layer = getattr(layer, "env", None)
    return RETURN


@torch.no_grad()
def mean_return(learner: Learner, world: World, task: int, seed: int) -> float:
    """Mean return of the first episode of each copy of `world`, with the most probable actions.

    In a data set (info["epoch"]) every example of one pass counts once, whatever the number of copies. With a metric in %
    the result is a share from 0 to 1: the metric's own `evaluate`, or the mean reward. Else it is the mean reward
    times the episode's length.
    """
    metric = metric_of(world)
    seen: list[tuple[Any, Any]] = []
    obs, _ = play(world, [task], seed)
    state = learner.initial_state(world.num_envs)
    start = np.ones(world.num_envs, dtype=np.bool_)
    first_episode, first_pass = start.copy(), start.copy()
    episode, in_pass, counted, length, is_data = 0.0, 0.0, 0, 0, False
    while first_pass.any() if is_data and metric.unit == "%" else first_episode.any() or (is_data and first_pass.any()):
        check_finite(obs, learner.steps)
        action, state = learner.act(obs, state, start)
        obs, rewards, terminated, truncated, info = world.step(action)
        check_finite({}, learner.steps, rewards)
        start = terminated | truncated
        if is_data := "epoch" in info:
            first_pass &= info["epoch"] == 0
            in_pass, counted = in_pass + float(rewards[first_pass].sum()), counted + int(first_pass.sum())
            if metric.evaluate is not None:
                seen.append((info["label"][first_pass], action[first_pass]))
        episode += float(rewards[first_episode].sum())
        length += int(first_episode.sum())
        first_episode &= ~start
    if metric.evaluate is not None:
        labels, guesses = (np.concatenate(column) for column in zip(*seen, strict=True))
        return float(metric.evaluate(task, labels, guesses))
    if not is_data:
        return episode / world.num_envs
    share = in_pass / counted
    return share if metric.unit == "%" else share * (length / world.num_envs)


def returns(learner: Learner, world: World, strategies: Sequence[Strategy], seed: int, tasks: Collection[int] | None = None) -> list[float]:
    """`mean_return` of each task, in the strategies' view of it; nan of those not among `tasks`, if they are given."""
    return [_return(learner, world, strategies, task, seed) if tasks is None or task.id in tasks else float("nan") for task in world.tasks]


def _return(learner: Learner, world: World, strategies: Sequence[Strategy], task: Task, seed: int) -> float:
    with ExitStack() as views:
        for strategy in strategies:
            views.enter_context(strategy.view(task, learner))
        views.enter_context(learner.judging())
        return mean_return(learner, world, task.id, seed)


def score_metric(world: World) -> Metric:
    """What scores in `world` are: its own metric if that is a share; else scores where every task has a reference; else returns."""
    metric = metric_of(world)
    if metric.unit == "%":
        return metric
    return SCORE if np.isfinite([world.reference(task.id) for task in world.tasks]).all() else metric


def scaled(world: World, returns: Sequence[float]) -> list[float]:
    """The scores that each task's return G makes, by `score_metric`.

    A share in %; (G - random) / (best - random), 0 for a random agent and 1 for the best known; or G itself.
    """
    metric = score_metric(world)
    if metric.unit == "%":
        return [100.0 * G for G in returns]
    if metric != SCORE:
        return list(returns)
    references = [world.reference(task.id) for task in world.tasks]
    return [(G - random) / (best - random) for G, (random, best) in zip(returns, references, strict=True)]


def scores(learner: Learner, world: World, strategies: Sequence[Strategy], seed: int) -> list[float]:
    """`returns` of all tasks, `scaled`."""
    return scaled(world, returns(learner, world, strategies, seed))
