"""How well a learner does a task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch

from everloop.loop.learner import Learner
from everloop.loop.strategies import Strategy
from everloop.loop.world import Task, World, check_finite, play


@torch.no_grad()
def mean_return(learner: Learner, world: World, task: int, seed: int) -> float:
    """Mean return of the episodes that the copies of `world` play first, one each, with the most probable actions.

    In a data set (info["epoch"]) every example of one pass counts once, whatever the number of copies: the
    mean reward of the pass times the episode's length.
    """
    obs, _ = play(world, [task], seed)
    state = learner.module.initial_state(world.num_envs)  # type: ignore[operator]
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
        episode += float(rewards[first_episode].sum())
        length += int(first_episode.sum())
        first_episode &= ~start
    return in_pass / judged * (length / world.num_envs) if is_data else episode / world.num_envs


def scores(learner: Learner, world: World, strategies: Sequence[Strategy], seed: int) -> list[float]:
    """(G - random) / (best - random) for each task, in the strategies' view of it; nan where no reference is known."""
    return [_score(learner, world, strategies, task, seed) for task in world.tasks]


def _score(learner: Learner, world: World, strategies: Sequence[Strategy], task: Task, seed: int) -> float:
    random, best = world.reference(task.id)
    with ExitStack() as views:
        for strategy in strategies:
            views.enter_context(strategy.view(task, learner))
        views.enter_context(learner.judging())
        return (mean_return(learner, world, task.id, seed) - random) / (best - random)
