"""How well a learner does each task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from everloop.loop.learner import Learner
from everloop.loop.strategies import Strategy
from everloop.loop.world import Task, World, check_finite, play


@torch.no_grad()
def mean_return(learner: Learner, world: World, task: int, seed: int) -> float:
    """Mean return of the episodes that the copies of `world` play first, one each, with the most probable actions.

    In a data set (info["epoch"]) every example of one pass counts once, whatever the number of copies: the
    mean reward of the pass times the episode's length. Where the world judges for itself, `world.judge(task, labels,
    guesses)` of the whole pass takes the place of rewards: what it measures is no mean over examples.
    """
    judge = getattr(world, "judge", None)
    told: list[tuple[Any, Any]] = []
    obs, _ = play(world, [task], seed)
    state = learner.initial_state(world.num_envs)
    start = np.ones(world.num_envs, dtype=np.bool_)
    first_episode, first_pass = start.copy(), start.copy()
    episode, in_pass, judged, length, is_data = 0.0, 0.0, 0, 0, False
    while first_episode.any() or (is_data and first_pass.any()):
        check_finite(obs, learner.steps)
        action, state = learner.act(obs, state, start)
        obs, rewards, terminated, truncated, info = world.step(action)
        check_finite({}, learner.steps, rewards)
        start = terminated | truncated
        if is_data := "epoch" in info:
            first_pass &= info["epoch"] == 0
            in_pass, judged = in_pass + float(rewards[first_pass].sum()), judged + int(first_pass.sum())
            if judge is not None:
                told.append((info["label"][first_pass], action[first_pass]))
        episode += float(rewards[first_episode].sum())
        length += int(first_episode.sum())
        first_episode &= ~start
    if judge is not None:
        labels, guesses = (np.concatenate(column) for column in zip(*told, strict=True))
        return float(judge(task, labels, guesses))
    return in_pass / judged * (length / world.num_envs) if is_data else episode / world.num_envs


def returns(learner: Learner, world: World, strategies: Sequence[Strategy], seed: int, tasks: Collection[int] | None = None) -> list[float]:
    """`mean_return` of each task, in the strategies' view of it; nan of those not among `tasks`, if they are given."""
    return [_return(learner, world, strategies, task, seed) if tasks is None or task.id in tasks else float("nan") for task in world.tasks]


def _return(learner: Learner, world: World, strategies: Sequence[Strategy], task: Task, seed: int) -> float:
    with ExitStack() as views:
        for strategy in strategies:
            views.enter_context(strategy.view(task, learner))
        views.enter_context(learner.judging())
        return mean_return(learner, world, task.id, seed)


def scaled(world: World, returns: Sequence[float]) -> list[float]:
    """Scores: (G - random) / (best - random) for each task's return G; nan where no reference is known.

    What a world judges for itself is a score already.
    """
    if getattr(world, "judge", None) is not None:
        return list(returns)
    references = [world.reference(task.id) for task in world.tasks]
    return [(G - random) / (best - random) for G, (random, best) in zip(returns, references, strict=True)]


def scores(learner: Learner, world: World, strategies: Sequence[Strategy], seed: int) -> list[float]:
    """`returns` of all tasks, `scaled`."""
    return scaled(world, returns(learner, world, strategies, seed))
